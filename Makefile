# make demo    compress and decompress a photograph into demo/
# make test    the tests
# make check   lint, types and tests, as CI does
# make fuzz    damaged and hostile inputs, without end
# make bench   microbenchmarks of the codebook operations

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types check fuzz bench clean

.venv/.installed: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/python -m ddcm_fast.demo --output demo

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests

lint: .venv/.installed
	$(BIN)/ruff check .

types: .venv/.installed
	$(BIN)/mypy

check: lint types test

fuzz: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py

bench: .venv/.installed
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf .venv build dist demo *.egg-info
