# Development commands. Each one sets up .venv first, and again when the dependencies change.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-heavy check fix wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## Train a small encoder on the sample data, on a CPU
	$(BIN)/python train.py +experiment=quickstart

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest

test-heavy: $(INSTALLED) ## Run the long tests
	$(BIN)/python -m pytest -m heavy

check: $(INSTALLED) ## Check the style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

fix: $(INSTALLED) ## Mend the style where that can be done by program
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(INSTALLED) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean: ## Remove what was built and cached; .venv and outputs/ stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -path ./outputs -prune -o -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The variables hold the isolated builds of packages to the same versions, which -c alone does not (the second is for pip 25.3
# and later). Torch goes in first, on its own: where wheels of a CPU build are at hand, pip then picks that build.
$(INSTALLED): export PIP_CONSTRAINT := constraints.txt
$(INSTALLED): export PIP_BUILD_CONSTRAINT := constraints.txt
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) not found: name a Python, make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c '$(ENOUGH)' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@
