# Needs only make and a Python of at least 3.11; everything else goes into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TO_TRAIN := $(VENV)/.installed-to-train
TORCH := torch==2.13.0

# Two workers that compute with one thread each are faster on two cores than one worker with two.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: $(TO_TRAIN) ## Draw 300 pictures, search them, fine-tune with SaHa, search again: 2 to 5 minutes on 2 cores
	env -u OMP_NUM_THREADS $(BIN)/hf-mmembed quickstart

.PHONY: test
test: quality chromium ## Quality gates, then the whole test suite
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --durations 15

# For the browser tests of the Space, which are skipped without it. No "##": nobody needs to call it.
.PHONY: chromium
chromium:
	@command -v chromium chromium-browser google-chrome > /dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium; } \
	  || echo "no chromium here, and it could not be installed: the browser tests will be skipped"

.PHONY: quality
quality: $(STAMP) ## Lint, format check, type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: $(STAMP) ## Print the speed tables
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks.encode

.PHONY: clean
clean: ## Remove caches, builds and what the quickstart wrote; keeps .venv and runs
	rm -rf build dist quickstart .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# python3.11 may be on the path and still not run (a version manager's shim), so each candidate is tried.
$(BIN)/python:
	@for python in python3.11 python3; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "creating $(VENV) with $$($$python --version)"; $$python -m venv $(VENV) && exit; \
	    rm -rf $(VENV); echo "error: $$python cannot make $(VENV): see above" >&2; exit 1; \
	  fi; \
	done; \
	echo "error: no Python >= 3.11 found as python3.11 or python3; install one and run make again" >&2; exit 1

# torch first and by itself: the resolver then has the big download settled before it looks at the rest.
$(TO_TRAIN): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[train]' -c constraints.txt
	@touch $@

$(STAMP): $(TO_TRAIN)
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@
