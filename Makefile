# `make run` and `make test` need Python 3.11 or newer, git and make, nothing else.
PYTHON ?= python3
EXPERIMENT ?= mlpnas_digits
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTED := $(VENV)/.installed-test

.PHONY: run test lint types help clean

help:
	@echo "make run [EXPERIMENT=mlpnas_digits] [ARGS=\"--seed=1 ...\"]"
	@echo "make test     lint, types, tests"

run: $(INSTALLED)
	$(BIN)/python run.py --experiment=$(EXPERIMENT) $(ARGS)

test: lint types
	$(BIN)/python -m pytest -n 2

lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TESTED)
	$(BIN)/mypy nasjax experiments run.py benchmarks

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(TESTED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
