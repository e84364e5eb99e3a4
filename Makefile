# Every target makes .venv when it is missing and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
# The other end of the pins: the newest JAX, which needs a newer Python.
NEWER ?= python3.13
SUBSET := tests/core tests/dropout/test_bits.py tests/dropout/test_functional.py \
  tests/dropout/test_settings.py tests/engine/test_step.py tests/engine/test_evaluation.py \
  tests/trust/test_partition.py tests/runs/test_stack.py
BIN := $(VENV)/bin
WORKERS ?= 2
# Where one PyTorch build is enough, name it: make bench TORCH=torch==2.13.0
TORCH ?= torch

.PHONY: help train test nightly subset ends wheel check lint types bench bench-backbone bench-devices docs notebook clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/thinned: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $$($(PYTHON) --version) is too old: name a Python of at least 3.11, as in make PYTHON=python3.11 train"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test: $(BIN)/thinned
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/.bench: $(BIN)/thinned
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . psutil $(TORCH)
	@touch $@

train: $(BIN)/thinned ## Train the tutorial's classifier on real MNIST (10 epochs)
	$(BIN)/thinned train

test: $(VENV)/.test ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

nightly: $(VENV)/.test ## Run the long tests, too, and all on programs that are optimised
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'long or not long'

$(VENV)/.subset: $(BIN)/thinned
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pytest pytest-xdist hypothesis
	@touch $@

subset: $(VENV)/.subset ## A named part of the tests, for the other end of the pins
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(SUBSET)

ends: ## All tests on both ends of the pins: .venv, and .venv-newer with NEWER=python3.13
	$(MAKE) nightly
	$(MAKE) nightly PYTHON=$(NEWER) VENV=.venv-newer

wheel: $(BIN)/thinned ## Sdist and wheel, and the wheel alone in a bare environment: train, predict, serve
	$(BIN)/python scripts/wheel_trial.py --short

check: lint types ## Formatting, lint, types, import contract, quick --help

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_help.py
	$(BIN)/python scripts/write_reference.py --check

types: $(VENV)/.test
	$(BIN)/pyright --project pyproject.toml

bench: $(VENV)/.bench ## Our epoch against plain Flax, PyTorch and the roofline, side by side
	$(BIN)/python benchmarks/epoch.py
	$(BIN)/python benchmarks/dropout_speed.py

bench-backbone: $(VENV)/.bench ## EfficientNet-Lite0 beside PyTorch: features and full fine-tuning
	$(BIN)/python -m pip install --quiet timm safetensors
	$(BIN)/python benchmarks/backbone.py

bench-devices: $(BIN)/thinned ## Several devices beside one: pace, memory, bytes
	$(BIN)/python benchmarks/devices.py cnn mlp

$(VENV)/.docs: $(BIN)/thinned
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs ## The documentation site, docs/_build/html (runs the tutorial: a quarter of an hour)
	rm -rf docs/_build
	$(BIN)/python scripts/write_reference.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

notebook: $(VENV)/.test ## docs/tutorial.ipynb from docs/tutorial.md
	$(BIN)/python -m jupytext --quiet --to ipynb --output docs/tutorial.ipynb docs/tutorial.md

clean: ## Remove .venv and caches (never runs/)
	rm -rf $(VENV) .venv-newer .pytest_cache .ruff_cache .hypothesis .import_linter_cache
