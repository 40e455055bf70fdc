PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FLOORS := .venv-floors

.DEFAULT_GOAL := help
.PHONY: help quickstart paper test types pytest test-gpu test-slow test-floors mutants soak study-check forest notebooks docs release-check format clean

help: ## Show the commands.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

QUICKSTART := runs/quickstart
quickstart: $(VENV)/.installed ## Install, train MoCo v2 on the embedded digits, plain and with MixCo, compare them.
	$(BIN)/python recipes/moco.py --mix_weight 0 --precision 32-true --protocol none --output_dir $(QUICKSTART)/plain --overwrite
	$(BIN)/python recipes/moco.py --precision 32-true --protocol none --output_dir $(QUICKSTART)/mixco --overwrite
	$(BIN)/python recipes/evaluate.py --backbone_dir $(QUICKSTART)/plain $(QUICKSTART)/mixco --random_init --overwrite

DATA ?= data
SCALE ?= 1
JOBS ?= 1
MINUTES ?=
paper: $(VENV)/.installed ## Run the papers' tables on one GPU, or go on: DATA=data SCALE=1 JOBS=1; MINUTES=50 stops in between.
	$(BIN)/python recipes/paper.py --data_root $(DATA) --scale $(SCALE) --jobs $(JOBS)$(if $(MINUTES), --slice_minutes $(MINUTES))

test: $(VENV)/.installed-dev ## Install with the dev extra, run ruff, mypy and pytest.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs=2 types pytest

types: $(VENV)/.installed-dev
	$(BIN)/mypy

pytest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

test-gpu: $(VENV)/.installed-dev ## Run the tests that need a GPU; without one this fails.
	$(BIN)/python -m pytest tests/gpu

test-slow: $(VENV)/.installed-dev ## Run the tests that take minutes each: kills, fuzzing, mutants, torchrun.
	$(BIN)/python -m pytest -m slow

test-floors: ## Run the tests with the lowest versions that pyproject.toml allows, in an environment of their own.
	$(PYTHON) -m venv $(FLOORS)
	sed -nE 's/^ *"([a-z0-9-]+)(\[[a-z]+\])?>=([0-9.]+)(,<[0-9.]+)?".*/\1==\3/p' pyproject.toml > $(FLOORS)/floors.txt
	$(FLOORS)/bin/python -m pip install --quiet --editable '.[dev]' --constraint $(FLOORS)/floors.txt
	$(FLOORS)/bin/python -m pytest -n auto

mutants: $(VENV)/.installed-dev ## Make small mistakes in the code, one by one: the tests must fail on each.
	$(BIN)/python tests/mutants.py

soak: $(VENV)/.installed-dev ## Train for two hours; fail if memory, file handles or threads grow.
	$(BIN)/python tests/soak.py --minutes 120 --output runs/soak-$$(date +%Y%m%d-%H%M%S).csv

study-check: $(VENV)/.installed-dev ## Compute the tables in recipes/results/ and the README anew from their runs.
	$(BIN)/python -m pytest -q tests/studies/test_results.py

forest: $(VENV)/.installed ## Draw docs/results.png, all studies' differences to plain training, from recipes/results/.
	$(BIN)/python recipes/compare.py --output_dir recipes/results --forest docs/results.png

notebooks: $(VENV)/.installed-dev ## Write examples/notebooks/ from the scripts in examples/.
	$(BIN)/python examples/create_notebooks.py

docs: $(VENV)/.installed-docs ## Build the site into docs/build/html; the tutorials run, and a warning is an error.
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d docs/build/doctrees docs docs/build/html

release-check: $(VENV)/.installed-dev ## Build sdist and wheel, install each without downloads, run it in an empty folder.
	$(BIN)/python tests/smoke_release.py

format: $(VENV)/.installed-dev ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment, the site and all caches; runs/ stays.
	rm -rf docs/build docs/auto_tutorials docs/reference/generated $(VENV) $(FLOORS) .mypy_cache .ruff_cache .pytest_cache *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[recipes]'
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml mixco_lightly/__init__.py
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(BIN)/python pyproject.toml mixco_lightly/__init__.py
	$(BIN)/python -m pip install --quiet --editable '.[recipes,docs]'
	touch $@ $(VENV)/.installed
