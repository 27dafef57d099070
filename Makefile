# `make` alone lists the targets. Everything runs in .venv, which `make install` builds.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# The first Python that is new enough, the one the tests run with first; or name one: make install PYTHON=...
PYTHON ?= $(shell for each in python3.11 python3 python3.12 python3.13 python; do \
	"$$each" -c '$(IS_NEW_ENOUGH)' 2>/dev/null && echo "$$each" && break; done)

# Tests: offline, one thread per process (several on few cores are many times slower), a process per core.
WORKERS ?= 2
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST := $(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu lint format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## build .venv with the package (editable) and the dev extras

$(STAMP): pyproject.toml constraints.txt
	@python='$(PYTHON)'; "$${python:-false}" -c '$(IS_NEW_ENOUGH)' 2>/dev/null || { \
		echo "transenc needs Python 3.11 or later; $${python:-python3} is $$("$${python:-python3}" --version 2>&1 | tail -n 1)." >&2; \
		echo "Install a newer one, or name it: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## distil the sample pairs from real weights and show what it gave (about 3 minutes)
	$(BIN)/python scripts/demo.py

test: install  ## run the fast tests, offline
	$(PYTEST)

test-slow: install  ## run the slow tests, offline
	$(PYTEST) -m "slow and not network"

test-gpu: install  ## run what only a GPU shows, offline, in one process
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu tests/test_gpu.py

lint: install  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## measure speed on this machine
	$(BIN)/python scripts/bench.py

clean:  ## remove caches and build products (not .venv, not runs/)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
