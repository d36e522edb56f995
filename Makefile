# Two commands from nothing: `make night` publishes the sample world's recommendations, `make test` checks everything.
# Each makes its own environment in .venv; a stamp there remembers what was installed, so that a second call takes seconds.

PYTHON ?= python3
BIN := .venv/bin

# Also for the environment in which pip builds this package (newer pips read the second name). Relative, because pip
# splits these at blanks, which a path of a checkout may contain.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Parallelism comes from the workers of pytest: one thread in each.
TEST_WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 POLARS_MAX_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help night simulate test torture lint types imports pytest format docs wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

night: .venv/core.stamp ## install, run the nightly on the sample world, print what it published and where
	$(BIN)/recsys-meta nightly --config configs/nightly.yaml

simulate: .venv/core.stamp ## install, then a month of two policies on the sample world: logs, both analyses, and the truth beside them
	$(ONE_THREAD) $(BIN)/recsys-meta simulate --config configs/simulate-sample.yaml

test: lint types imports pytest ## install, then lint, types, import contracts and tests

bench: .venv/bench.stamp ## install, then time the engine beside a clean loop and torchopt (some minutes)
	$(ONE_THREAD) $(BIN)/python -m pipelines.bench

# SCALE=0.05 runs a twentieth.
SCALE ?= 1
torture: .venv/dev.stamp ## nights killed, out of disk, in pairs, read, fed with damage; counts what was lost (SCALE=0.05: a twentieth)
	PYTHONPATH=tests $(ONE_THREAD) $(BIN)/python -m torture --scale $(SCALE)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/mypy

imports: .venv/dev.stamp
	$(BIN)/lint-imports

pytest: .venv/dev.stamp
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(TEST_WORKERS)

format: .venv/dev.stamp ## rewrite the code in the style that `make test` asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/dev.stamp ## rewrite what the documents take from the code: tables of settings, lines of links
	$(BIN)/python docs/generate.py

wheel: .venv/dev.stamp ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove the environment and everything that was built
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip compiles one file after the other, which takes it half of the installation; here all cores do. Some packages hold
# templates that are no Python, hence `|| true`.
define install
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e "$(1)"
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
endef

.venv/core.stamp: pyproject.toml constraints.txt
	$(call install,.)
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	$(call install,.[dev])
	touch .venv/core.stamp $@

.venv/bench.stamp: .venv/core.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	touch $@
