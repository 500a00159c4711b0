# `make demo` and `make test` do all the set-up on a machine with Python 3.11 and make.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format reference clean

demo: $(VENV)/.installed ## the main job: render, train, export, serve, query
	$(BIN)/likeness demo

test: $(VENV)/.installed ## all tests, the real tritonserver included
	$(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

reference: $(VENV)/.installed ## render model_repository/ again after a change of the contract or the default recipe
	$(BIN)/python -m likeness_export.repository_reference

# torch is named with its exact version, so that pip takes a CPU build where one is offered.
$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt torch==2.13.0 --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
