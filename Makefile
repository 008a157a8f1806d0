# Development commands. Each one sets up .venv first, and again when the dependencies change; test-lowest sets up .venv-lowest.
PYTHON ?= python3
BIN := .venv/bin
# A process a core: with a thread for each core in both, they would wait for each other.
TWO := -n 2 --dist
test test-heavy test-lowest: export OMP_NUM_THREADS = 1
INSTALLED := .venv/.installed
LOWEST := .venv-lowest/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-heavy test-lowest check fix docs wheel zoo zoo-check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## Train a small encoder on the sample data, on a CPU
	$(BIN)/python train.py +experiment=quickstart

test: $(INSTALLED) ## Run the tests, in two processes
	$(BIN)/python -m pytest $(TWO) loadfile

test-heavy: $(INSTALLED) ## Run the long tests, in two processes
	$(BIN)/python -m pytest $(TWO) load -m heavy --durations 40 -v

# Old versions warn of one another, so that warnings are errors with the pinned versions only.
test-lowest: $(LOWEST) ## Run the tests on the lowest versions that pyproject.toml allows
	$(<D)/bin/python -m pytest $(TWO) loadfile -W default

check: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: $(INSTALLED) ## Mend the style where that can be done by program
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(INSTALLED) ## Build the documentation into site/; warnings and broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	$(BIN)/python tools/check_site.py site

wheel: $(INSTALLED) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

zoo: $(INSTALLED) ## Make the encoders of the package, stage by stage: make zoo DATA=DIR
	$(BIN)/python tools/zoo.py --data "$(DATA)"

zoo-check: $(INSTALLED) ## Rehearse every stage of it on a few rows of the sample
	rm -rf outputs/zoo_check
	$(BIN)/python tools/zoo.py --rehearse --out outputs/zoo_check

clean: ## Remove what was built and cached; .venv, .venv-lowest and outputs/ stay
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path './.venv*' -prune -o -path ./outputs -prune -o -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The variables hold the isolated builds of packages to the same versions, which -c alone does not (the second is for pip 25.3
# and later). Torch goes in first, on its own: where wheels of a CPU build are at hand, pip then picks that build.
# The lowest versions have wheels for Python 3.11; not all of them have one for a later Python.
$(INSTALLED): CONSTRAINTS := constraints.txt
$(INSTALLED): NEEDED := 3.11 or newer
$(INSTALLED): ENOUGH := sys.version_info >= (3, 11)
$(LOWEST): CONSTRAINTS := constraints-lowest.txt
$(LOWEST): NEEDED := 3.11
$(LOWEST): ENOUGH := sys.version_info[:2] == (3, 11)
$(INSTALLED) $(LOWEST): export PIP_CONSTRAINT = $(CONSTRAINTS)
$(INSTALLED) $(LOWEST): export PIP_BUILD_CONSTRAINT = $(CONSTRAINTS)
$(INSTALLED): constraints.txt
$(LOWEST): constraints-lowest.txt
$(INSTALLED) $(LOWEST): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) not found: name a Python, make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not $(ENOUGH))' || { echo "Python $(NEEDED) is needed: make PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(@D)
	$(@D)/bin/python -m pip install -c $(CONSTRAINTS) torch
	$(@D)/bin/python -m pip install -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@
