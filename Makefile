# `make demo` and `make test` work from nothing on Debian or Ubuntu with Python 3.11 to 3.13. The first of them sets up
# the environment (from requirements.lock, some minutes); after that they start at once.
#
#   make demo     train four block designs side by side on real text, and say where the report is
#   make test     run the tests
#   make check    what CI runs: format, lint, types, import contracts, the lock, tests, the README's commands
#   make help     every target
#
# Variables: PYTHON (interpreter that makes the environment), VENV (where it goes), PIP_ARGS (said to `pip install`),
# DEMO (folder of the demo), ARGS (more arguments for the demo's `sublayer compare` or for pytest), JOBS (test workers).

VENV ?= .venv
DEMO ?= demo
JOBS ?= logical
PIP_ARGS ?=
BENCH ?=
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
CODE := src tests tools benchmarks studies

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format format-check lint types contracts supply readme images atlas witness keystone bench torture counts lock clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## make the environment, if it is missing or older than the lock

# The package itself is installed in place, so the environment is remade only when what it depends on changes.
$(STAMP): requirements.lock requirements-cuda.lock pyproject.toml tools/make_venv.sh
	@PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" sh tools/make_venv.sh "$(VENV)"
	@touch $@

demo: $(STAMP)  ## train four designs side by side and write a report
	$(BIN)/sublayer compare --out $(DEMO) --resume $(ARGS)
	@echo
	@echo "The report: $(abspath $(DEMO))/report.html (open it in a browser)"

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal $(ARGS)

check: $(STAMP)  ## what CI runs: the checks below, a short demo, the tests with the README's quick commands
	@$(MAKE) --no-print-directory format-check lint types contracts supply
	@rm -rf build/demo
	@$(MAKE) --no-print-directory demo DEMO=build/demo ARGS="--steps 8"
	@$(MAKE) --no-print-directory test

format: $(STAMP)  ## put the code into the one format, sort imports
	$(BIN)/ruff check --select I --fix $(CODE)
	$(BIN)/ruff format $(CODE)

format-check: $(STAMP)  ## is the code in the one format?
	$(BIN)/ruff format --check $(CODE)

lint: $(STAMP)  ## look for likely mistakes
	$(BIN)/ruff check $(CODE)

types: $(STAMP)  ## check the type hints
	$(BIN)/mypy

contracts: $(STAMP)  ## check which package imports which
	$(BIN)/lint-imports --no-logo

supply: $(STAMP)  ## are the packages of the lock hashed, of allowed licences, and without known weaknesses?
	$(BIN)/python tools/supply.py

readme: $(STAMP)  ## run the README's commands, but for those that only set up or test
	$(BIN)/python tools/readme.py

images: $(STAMP)  ## draw the pictures of the documents again
	$(BIN)/sublayer show post-norm --svg docs/images/post-norm.svg

# One worker unless JOBS says more: a large model takes a gigabyte. What was read is kept in build/atlas, for the next run.
atlas: $(STAMP)  ## audit every text model of transformers, write docs/atlas, print the figures
	$(BIN)/python tools/atlas --jobs $(if $(filter logical,$(JOBS)),1,$(JOBS)) $(ARGS)

witness: $(STAMP)  ## read the table's models a second time, through torch.export, and compare
	$(BIN)/python tools/atlas/witness.py $(ARGS)

keystone: $(STAMP)  ## build a thousand random designs and read each back
	PYTHONPATH=. $(BIN)/python tools/keystone.py --count 1000 $(ARGS)

bench: $(STAMP)  ## measure speed beside peers and limits (hours; BENCH="mlm clm" for some, ARGS=--quick to see that it runs)
	$(BIN)/pip install $(PIP_ARGS) --quiet ".[bench]"
	$(BIN)/sublayer bench $(BENCH) $(ARGS)

torture: $(STAMP)  ## try to break what is promised: kills, crashes, damage, full disks, bad input (hours; ARGS="kill --quick")
	$(BIN)/python tools/torture $(ARGS)

counts: $(STAMP)  ## lines and files of each package
	$(BIN)/python tools/counts.py

# In an environment of its own: the lock must not depend on what it locked the last time.
lock:  ## write requirements.lock and requirements-cuda.lock again; UPGRADE=1 looks for newer versions
	@VENV_TOOL=uv==0.13.9 PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" sh tools/make_venv.sh .venv-lock
	PATH="$(CURDIR)/.venv-lock/bin:$$PATH" python tools/lock.py $(if $(UPGRADE),--upgrade)

clean:  ## remove caches and builds, but neither the environment nor the demo
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info
	find src tests tools -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## remove the environment and the demo too
	rm -rf .venv .venv-lock demo
