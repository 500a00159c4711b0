# `make demo` and `make test` do all the set-up on a machine with Python 3.11 and make.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
TIMM_VENV ?= .venv-timm
LOWEST_VENV ?= .venv-lowest

.PHONY: demo test test-timm test-lowest lint format reference clean

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

test-lowest: $(LOWEST_VENV)/.installed ## the fast tests with the lowest releases that pyproject.toml allows; CI has no time for it
	$(LOWEST_VENV)/bin/pytest tests/unit tests/client

# uv lists these releases, pip installs them: with torch's build for CPUs where one is offered.
$(LOWEST_VENV)/.installed: EXTRAS := demo,efficientnet-lite,parquet
$(LOWEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/pip install --quiet uv
	$(LOWEST_VENV)/bin/python -m uv pip compile --quiet --resolution lowest-direct --extra $(EXTRAS) \
		--output-file $(LOWEST_VENV)/lowest.txt pyproject.toml
	$(LOWEST_VENV)/bin/pip install --quiet --constraint $(LOWEST_VENV)/lowest.txt \
		--editable ".[$(EXTRAS)]" hypothesis pytest
	touch $@

clean:
	rm -rf $(VENV) $(TIMM_VENV) $(LOWEST_VENV) runs dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
