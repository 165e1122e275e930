# Everything a newcomer needs; `make` alone lists it. Needs only Python >= 3.11 with venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := $(VENV)/.installed
# Test files side by side, each on one core; more than four at a time would take much memory.
SPREAD := -n logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test gpu soak oldest audit lint types format lessons notebooks colab figures browser lab clean

help: ## list these targets
	@grep -hE '^[a-z.]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

demo: $(STAMP) ## the main job: one task under three constraints; minutes on a laptop
	$(BIN)/rftkit compare --task dialogue --out out/demo
	@echo "The figure is out/demo/curves.png, its numbers are out/demo/summary.json."

test notebooks: export OMP_NUM_THREADS := 1

test: lint types ## lint, type check, tests, and every lesson from top to bottom
	$(BIN)/python -m pytest $(SPREAD)
	$(MAKE) notebooks

gpu: $(STAMP) ## the tests that need a CUDA GPU; `make test` uses the CPU alone
	RFTKIT_TESTS=gpu $(BIN)/python -m pytest -rs tests/gpu

soak: $(STAMP) ## the long tests: kill -9 at random, 2,000 steps, no network; most of an hour
	$(BIN)/python -m pytest -m soak

oldest: $(STAMP) ## the tests with the oldest packages that pyproject.toml allows; recorded
	$(BIN)/python tests/benchmarks/versions.py oldest

audit: $(STAMP) ## the pins against the list of known vulnerabilities, where it can be asked
	$(BIN)/python tests/benchmarks/audit.py

lint: $(STAMP) ## ruff, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	$(BIN)/mypy

format: $(STAMP) ## ruff, fixing what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lessons: $(STAMP) ## run every lesson and write its outputs and its cost back
	$(BIN)/python -m rftkit.lessons notebooks/*.ipynb notebooks/solutions/*.ipynb

notebooks: $(STAMP) ## run every lesson; cells that are the same everywhere are compared
	$(BIN)/python -m pytest $(SPREAD) --nbval-lax --nbval-cell-timeout=240 notebooks

colab: $(STAMP) ## links to Colab in each lesson: make colab REPOSITORY=owner/name
	@test -n "$(REPOSITORY)" || { echo "say where it is on GitHub: make colab REPOSITORY=owner/name" >&2; exit 2; }
	$(BIN)/python -m rftkit.lessons --colab $(REPOSITORY) notebooks/[0-9]*.ipynb

figures: $(STAMP) ## figures for slides, with captions: out/figures
	$(BIN)/python -m rftkit.slides out/figures

browser: $(STAMP) ## the widgets in a real browser; screenshots in out/browser
	sh tests/browser/chromium.sh
	$(BIN)/python -m pytest -rs tests/browser/widgets_in_browser.py

lab: $(STAMP) ## open the first lesson in JupyterLab
	$(BIN)/rftkit lab

clean: ## remove results and caches; the environment stays
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.venv: $(STAMP) ## the environment, with the pinned packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "$(PYTHON) is not Python 3.11 to 3.13; name one that is: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[notebooks,test,gym,trl]'
	@touch $@
