# make demo     a SAN on this machine, ready for an initiator
# make test     every test, the Linux guest too (as root it installs the Debian packages that they need)
# make check    the quick loop: lint, format, types, fast tests
# make bench    speed against tgt
# make bench-clients    the simulated initiator beside the C load client
# make bench-map    a partition map of a million ranges
# make bench-migration    speed of migrations, and what applications see of them
# make bench-balance      a group with all load at one member, over time
#
# ARGS is handed on:  make demo ARGS="--volume media=20G"   make test ARGS="tests/unit -x"

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# The first interpreter that is new enough; PYTHON=... overrides.
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$candidate" && break; done)

.PHONY: setup demo test check simulate simulate-long simulate-mutants bench bench-clients bench-map bench-migration bench-balance clean tools

setup: $(VENV)/.stamp tools

# One stamp for the environment: made again when the list of dependencies changes.
$(VENV)/.stamp: pyproject.toml
	@test -n "$(PYTHON)" || { echo "san-target needs Python 3.11 or newer; name it with PYTHON=..." >&2; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then tests/support/python_venv.sh "$(PYTHON)"; fi
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

tools:
	@tests/support/host_tools.sh

demo: $(VENV)/.stamp
	@exec $(BIN)/san-target demo $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 $(ARGS)

check: $(VENV)/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/python -m pytest -q -m "not slow and not guest" $(ARGS)

bench: setup
	$(BIN)/python -m tests.bench.bench $(ARGS)

bench-clients: setup
	$(BIN)/python -m tests.bench.clients --many $(ARGS)

bench-map: $(VENV)/.stamp
	$(BIN)/python -m tests.bench.large_map $(ARGS)

bench-migration: $(VENV)/.stamp
	$(BIN)/python -m tests.bench.migration $(ARGS)

bench-balance: $(VENV)/.stamp
	$(BIN)/python -m tests.bench.balance $(ARGS)

# One run of a whole group under virtual time: make simulate SEED=7 ARGS="--scenario group-calm"
SEED ?= 1
simulate: $(VENV)/.stamp
	$(BIN)/python -m tests.simulation --seed $(SEED) $(ARGS)

# Many runs over all scenarios and cores: make simulate-long SEEDS=5000 FIRST=100000
FIRST ?= 10000
SEEDS ?= 2000
simulate-long: $(VENV)/.stamp
	$(BIN)/python -m tests.simulation --seeds $(FIRST) $(SEEDS) $(ARGS)

# Rules dropped from the product, each to be found from seeds that nobody chose: make simulate-mutants SEEDS=200
simulate-mutants: SEEDS = 60
simulate-mutants: $(VENV)/.stamp
	$(BIN)/python -m tests.simulation --mutants --seeds $(FIRST) $(SEEDS) $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/bench/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
