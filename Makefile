# Every target works alone on a machine with Python (3.11 or newer) and a C compiler.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
DEV_EXTRAS := compile,eval,plan,tune,test,dev

.PHONY: help setup demo test lint types contract ci lock clean

help:
	@echo "make demo      compile the English-German model for this CPU, translate, compare"
	@echo "make test      all tests"
	@echo "make lint      ruff, make types: basedpyright, make contract: one-way imports"
	@echo "make ci        everything that must pass before a merge"
	@echo "make setup     only create $(VENV) and install (the others do it when needed)"
	@echo "make lock      write requirements.lock anew from pyproject.toml"
	@echo "make clean     remove build outputs and caches (keeps $(VENV))"

$(BIN)/python:
	@command -v cc >/dev/null || { echo "error: no C compiler (cc) on PATH; install gcc or clang" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing tvmq into $(VENV) (a few minutes the first time)"
	$(PIP) install --quiet -c requirements.lock -e '.[compile,eval]'
	@touch $@

$(DEV_STAMP): pyproject.toml requirements.lock | $(BIN)/python
	@echo "installing tvmq and its development tools into $(VENV) (a few minutes the first time)"
	$(PIP) install --quiet -c requirements.lock -e '.[$(DEV_EXTRAS)]'
	@touch $(RUN_STAMP) $@

setup: $(DEV_STAMP)

demo: $(RUN_STAMP)
	$(BIN)/python -m tvmq.demo

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --max-worker-restart=0

lint: $(DEV_STAMP)
	$(BIN)/ruff check .

types: $(DEV_STAMP)
	$(BIN)/basedpyright

contract: $(DEV_STAMP)
	$(BIN)/lint-imports

ci:
	.ci/run

# A fresh environment resolved from pyproject.toml alone; local build tags such as +cpu are dropped so
# that the same pins hold on machines whose registry carries other builds of the same version.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet -e '.[$(DEV_EXTRAS),bench,cross]'
	echo "# Exact versions for every extra; written by make lock." > requirements.lock
	build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> requirements.lock
	rm -rf build/lock

clean:
	rm -rf build dist .tvmq .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find tvmq relay_passes schedules targets tests -name __pycache__ -type d -prune -exec rm -rf {} +
