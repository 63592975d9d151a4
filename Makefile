# make demo    compress and decompress a photograph into demo/
# make test    the tests, but for the exhaustive sweeps
# make check   lint, types and tests
# make bench   microbenchmarks of the codebook operations
#
# What CI (.ci/run) runs beside `make check`:
# make test-avx2   the tests as a processor without AVX-512 computes
# make test-slow   the exhaustive sweeps

PYTHON ?= python3
BIN := .venv/bin
# Two workers of one thread each.
WORKERS := --numprocesses 2 --dist worksteal

.PHONY: demo test test-avx2 test-slow lint types check bench clean

.venv/.installed: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/python -m ddcm_fast.demo --output demo

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m "not slow" tests

test-avx2: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/as_avx2.py $(WORKERS) -m "not slow" tests

test-slow: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m slow tests

lint: .venv/.installed
	$(BIN)/ruff check .

types: .venv/.installed
	$(BIN)/mypy

check: lint types test

bench: .venv/.installed
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf .venv build dist demo *.egg-info
