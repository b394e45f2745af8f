# `make demo` and `make test` set themselves up; everything lives in .venv and is reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test lint types docs examples bench clean help

help:
	@echo "make demo   train a concept model of a drawn chest, look at it, check it (minutes)"
	@echo "make test   run the tests"
	@echo "make lint | types | docs | examples | bench | clean"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "conceptcam needs Python 3.11 or newer; say make PYTHON=python3.12, for instance"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/conceptcam demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

examples: $(READY)
	for example in examples/*.py; do echo "== $$example"; $(BIN)/python $$example || exit 1; done

bench: $(READY)
	for benchmark in heads losses loading stages training zoo; do $(BIN)/python benchmarks/$$benchmark.py || exit 1; done

clean:
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
