# `make demo` and `make test` set themselves up; everything lives in .venv and is reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Other Pythons and the lowest versions have environments of their own; uv finds or brings the interpreters.
UV := .venv-uv/bin/uv
TEST := -m pytest --numprocesses 2
# Processors add in different orders. With these, this one does as an older one does.
AVX2 := MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
SSE41 := MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
# The files whose claims depend on the last bits.
SENSITIVE := $(addprefix tests/,losses metrics model data/test_transforms.py hub/test_weights.py \
	hub/test_model_folder.py training/test_checkpoints.py training/test_distributed.py training/test_feature_cache.py \
	training/test_optimizer.py training/test_prototype_init.py training/test_trainer.py)

.PHONY: demo test test-3.11 test-3.12 test-3.13 test-lowest test-portable test-sensitive \
	lint types docs examples bench clean help

help:
	@echo "make demo            train a concept model of a drawn chest, look at it, check it (minutes)"
	@echo "make test            run the tests"
	@echo "make test-3.12       run them on another Python: 3.11, 3.12 or 3.13 (INTERPRETER=... names one that uv cannot find)"
	@echo "make test-lowest     run them with the oldest dependencies that pyproject.toml allows"
	@echo "make test-portable   run them as two older kinds of processor compute"
	@echo "make test-sensitive  run those that depend on the last bits, as the oldest kind computes"
	@echo "make lint | types | docs | examples | bench | clean"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "conceptcam needs Python 3.11 or newer; say make PYTHON=python3.12, for instance"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check uv

.venv-3.%/ready: pyproject.toml | $(UV)
	$(UV) venv --quiet --clear --seed --python $(or $(INTERPRETER),3.$*) .venv-3.$*
	.venv-3.$*/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

.venv-lowest/ready: pyproject.toml | $(UV)
	$(UV) venv --quiet --clear --seed --python 3.11 .venv-lowest
	$(UV) pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/conceptcam demo

test: $(READY)
	$(BIN)/python $(TEST)

test-3.11 test-3.12 test-3.13 test-lowest: test-%: .venv-%/ready
	.venv-$*/bin/python $(TEST)

test-portable: $(READY)
	$(AVX2) $(BIN)/python $(TEST)
	$(SSE41) $(BIN)/python $(TEST)

test-sensitive: $(READY)
	$(SSE41) $(BIN)/python $(TEST) $(SENSITIVE)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

examples: $(READY)
	for example in examples/*.py; do echo "== $$example"; $(BIN)/python $$example || exit 1; done
	for notebook in examples/*.ipynb; do echo "== $$notebook"; $(BIN)/jupyter execute $$notebook || exit 1; done

bench: $(READY)
	for benchmark in heads losses loading loading_images stages training zoo; do $(BIN)/python benchmarks/$$benchmark.py || exit 1; done

clean:
	rm -rf .venv .venv-* site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
