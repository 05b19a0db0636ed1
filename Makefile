# Everything runs in a virtual environment that the targets make on their own: $(VENV), from $(PYTHON).
# What is installed is remembered in stamp files that hold a copy of pyproject.toml: a second run starts at once and
# needs no network, and only another pyproject.toml or another Python installs again.

PYTHON ?= python3
VENV ?= .venv
BENCH ?= $(filter-out __init__ report,$(basename $(notdir $(wildcard benchmarks/*.py))))
ARGS ?=
# `make check` fails unless every branch of these is covered by tests.
FULLY_COVERED := promptside/supervision/*,promptside/pools/*breaker*,promptside/pools/*limiter*,promptside/pools/*affinity*

PY := $(VENV)/bin/python

# A Python that was asked for and is not the environment's: forget what is installed, so that it is made anew.
ifneq ($(origin PYTHON),file)
version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifneq ($(call version,$(PYTHON)),$(call version,$(PY)))
$(shell rm -f $(VENV)/.*-installed)
endif
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-mlflow check format lint types wheel bench reference conformance clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo 'PYTHON=python3.12 and VENV=.venv-3.12 choose another interpreter; ARGS passes arguments to pytest or a benchmark.'

demo: $(VENV)/.run-installed ## Triage five support tickets with supervised actors on a real model
	@$(PY) examples/01_triage.py $(ARGS)

test: $(VENV)/.dev-installed ## Run the tests
	$(PY) -m pytest $(ARGS)

test-all: ## Run the tests on every Python from 3.11 to 3.13 that is present
	@PYTHON=$(PYTHON) VENV=$(VENV) bash .ci/test_all.sh

test-mlflow: $(VENV)/.run-installed ## Run the test beside mlflow's autolog, in an environment of its own, for mlflow is large
	@test -x $(VENV)-mlflow/bin/python || $(PY) -m venv $(VENV)-mlflow
	@$(VENV)-mlflow/bin/python -m pip install --quiet -e '.[dev,mlflow]'
	$(VENV)-mlflow/bin/python -m pytest tests/programs/test_mlflow.py $(ARGS)

check: lint types wheel $(VENV)/.dev-installed ## Everything that must hold before a commit: format, lint, types, wheel, tests
	$(PY) -m pytest --cov --cov-report= $(ARGS)
	@$(PY) -m coverage report
	@$(PY) -m coverage report --include='$(FULLY_COVERED)' --fail-under=100

lint: $(VENV)/.dev-installed ## Check format and style
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(VENV)/.dev-installed ## Check types with mypy and pyright
	$(PY) -m mypy
	$(PY) -m pyright --pythonpath $(PY)

wheel: $(VENV)/.dev-installed ## Build the wheel, install it in an environment of its own, and use it
	@bash .ci/wheel_check.sh $(PY) $(VENV)-wheel

format: $(VENV)/.dev-installed ## Format, and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(VENV)/.bench-installed ## Measure against the peers (BENCH=actors, ARGS=--quick)
	@set -e; for name in $(BENCH); do $(PY) -m benchmarks.$$name $(ARGS); done

reference: $(VENV)/.run-installed ## Write docs/reference anew from the code
	@$(PY) .ci/reference.py docs/reference

conformance: $(VENV)/.run-installed ## Record the behaviour of Erlang/OTP's supervisor anew (needs escript)
	@$(PY) -m tests.conformance.record

clean: ## Remove the environments and everything that was built
	rm -rf $(VENV) $(VENV)-wheel $(VENV)-mlflow .venv-3.* build dist .coverage .coverage.* htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -exec rm -rf {} +

$(VENV)/.run-installed: pyproject.toml
	@bash .ci/install.sh run $@ '$(PYTHON)' $(firstword $(origin PYTHON)) '$(VENV)'

$(VENV)/.dev-installed: pyproject.toml $(VENV)/.run-installed
	@bash .ci/install.sh dev $@ '$(PYTHON)' $(firstword $(origin PYTHON)) '$(VENV)'

$(VENV)/.bench-installed: pyproject.toml $(VENV)/.run-installed
	@bash .ci/install.sh bench $@ '$(PYTHON)' $(firstword $(origin PYTHON)) '$(VENV)'
