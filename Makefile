# Bare `make` lists the targets; each target's comment is its description.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# A Python that some of the tested versions do not support has a file of its own.
CONSTRAINTS := $(or $(wildcard constraints-$(VERSION).txt),constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test check lint format sweep bench compat soak tiny-model clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) --editable '.[cluster,dev,hub,large]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/run.stamp
	$(PIP) --editable '.[bench]'
	@touch $@

run: $(VENV)/run.stamp  ## Trace the embedded model on the embedded facts (ARGS="mediator=mlp" for more)
	$(BIN)/python -m ktrace $(ARGS)

test: $(VENV)/dev.stamp  ## Run the tests
	$(PYTEST) --numprocesses auto --dist worksteal -m "not check" $(ARGS)

check: $(VENV)/dev.stamp  ## Run the tests of wheels, recipes and the intervals' coverage
	$(PYTEST) --numprocesses auto -m check $(ARGS)

lint: $(VENV)/dev.stamp  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict ktrace

format: $(VENV)/dev.stamp  ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

sweep: $(VENV)/run.stamp  ## Trace the five mediators as a sweep (MODELS=tiny,gpt2 for more models)
	$(BIN)/python -m ktrace --multirun model=$(or $(MODELS),tiny) \
	    mediator=hidden,hidden_attn_severed,hidden_mlp_severed,mlp,attn $(ARGS)

bench: $(VENV)/bench.stamp  ## Measure speed against the arithmetic and the peers (about 10 minutes)
	$(BIN)/python -m benchmarks.gpt2_small --write docs/benchmarks.md $(ARGS)

compat: $(VENV)/run.stamp  ## Try every Python that is here, and the oldest versions (20 minutes, 10 GB)
	$(PIP) '.[compat]'
	$(BIN)/python -m benchmarks.compat --write docs/compatibility.md $(ARGS)

soak: $(VENV)/run.stamp  ## Kill, damage and fill the disk under several writers (ARGS="--minutes 60")
	$(BIN)/python -m benchmarks.soak $(ARGS)

tiny-model: $(VENV)/run.stamp  ## Train the embedded model anew (about 10 minutes on 2 cores)
	$(BIN)/python data/train_tiny.py $(ARGS)

clean:  ## Remove environment, caches and build files (never outputs/)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
