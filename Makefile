# Everything runs in .venv, which is made when it is missing and brought up to date when the requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python 3.11 cannot have the newest releases of some dependencies.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("constraints" + "-py312" * (sys.version_info >= (3, 12)) + ".txt")')

# Where it is set, every start would compile its libraries' modules anew: two seconds, and so minutes of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart test test-all test-extra check docs clean

help:
	@echo 'make quickstart  install, then train on a small data set that needs no download'
	@echo 'make test        install what the tests need, then run the default suite'
	@echo 'make test-all    the same, and longer tests'
	@echo 'make test-extra  the longest tests only'
	@echo 'make check       lint, formatting and types'
	@echo 'make docs        the documentation as a site, in site/'
	@echo 'make clean       remove .venv and what tools leave behind'
	@echo 'PYTHON=python3.12 on any of them chooses the interpreter that .venv is made from'

quickstart: $(VENV)/.installed
	$(BIN)/python -m experiments.quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m 'not extra'

test-extra: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m extra

check: $(VENV)/.installed-test
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# $(1): what to install. Modules are compiled when first imported: compiling all of them takes longer than a short run.
define install
	@command -v $(PYTHON) >/dev/null || { echo 'error: there is no $(PYTHON); give PYTHON=PATH' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or later is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); give PYTHON=PATH" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c $(CONSTRAINTS) -e '$(1)'
endef

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(call install,.)
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(CONSTRAINTS)
	$(call install,.[test])
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml $(CONSTRAINTS)
	$(call install,.[docs])
	@touch $(VENV)/.installed $@
