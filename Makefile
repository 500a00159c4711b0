# `make demo` and `make test` do all the set-up on a machine with Python 3.11 and make.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
TIMM_VENV ?= .venv-timm

.PHONY: demo test test-timm lint format reference clean

demo: $(VENV)/.installed ## the main job: render, train, export, serve, query
	$(BIN)/likeness demo

test: $(VENV)/.installed ## all tests but those of test-timm, the real tritonserver included
	$(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

reference: $(VENV)/.installed ## render model_repository/ again after a change of the contract or the default recipe
	$(BIN)/python -m likeness_export.repository.reference model_repository

# torch is named with its exact version, so that pip takes a CPU build where one is offered.
$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt torch==2.13.0 --editable ".[dev]"
	touch $@

test-timm: $(TIMM_VENV)/.installed ## timm's networks, trained, exported and served, where torch is the standard build
	$(TIMM_VENV)/bin/pytest tests/unit/test_image_local.py tests/test_pretrained_towers.py -k "timm or inception"

# timm's torchvision is resolved first: it brings the build of torch that it fits (about 6 GB with its CUDA libraries).
$(TIMM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TIMM_VENV)
	$(TIMM_VENV)/bin/pip install --quiet torchvision timm
	$(TIMM_VENV)/bin/pip install --quiet --editable ".[demo,efficientnet-lite,timm]" hypothesis pytest
	touch $@

clean:
	rm -rf $(VENV) $(TIMM_VENV) runs dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
