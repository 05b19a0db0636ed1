# Everything runs in a virtual environment that the targets make on their own: $(VENV), from $(PYTHON).
# What is installed is remembered in stamp files that hold a copy of pyproject.toml and constraints.txt: a second run
# starts at once and needs no network, and only other requirements or another Python install again.

PYTHON ?= python3
VENV ?= .venv
BENCH ?= $(filter-out __init__ report,$(basename $(notdir $(wildcard benchmarks/*.py))))
ARGS ?=
# `make check` fails unless every branch of these is covered by the tests that stand beside them.
FULLY_COVERED := promptside/supervision/**,promptside/**/*breaker*,promptside/**/*limiter*,promptside/**/*affinity*
COVERING := tests/supervision tests/properties tests/conformance tests/test_command_line.py \
	$(addprefix tests/pools/test_,breaker.py limiter.py wait_queue.py)

PY := $(VENV)/bin/python
DEV := $(VENV)/.dev-installed
# A test alone starts sooner with ARGS='-n0 tests/...'.
PYTEST := $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal
SUBMAKE := $(MAKE) --no-print-directory

# A Python that was asked for and is not the environment's: forget what is installed, so that it is made anew.
ifneq ($(origin PYTHON),file)
version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifneq ($(call version,$(PYTHON)),$(call version,$(PY)))
$(shell rm -f $(VENV)/.*-installed)
endif
endif

# What is imported is compiled once, not in each of the processes that the tests start, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-nightly test-newest test-oldest test-all test-mlflow check coverage format lint mypy pyright \
	wheel constraints bench reference conformance clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo 'PYTHON=python3.12 and VENV=.venv-3.12 choose another interpreter; ARGS passes arguments to pytest or a benchmark.'

demo: $(VENV)/.run-installed ## Triage five support tickets with supervised actors on a real model
	@$(PY) examples/01_triage.py $(ARGS)

test: $(DEV) ## Run the tests
	$(PYTEST) $(ARGS)

test-nightly: $(DEV) ## Run all tests, the long ones too, each property on 1,000 examples, and measure coverage
	$(PYTEST) -m '' --hypothesis-profile=nightly --timeout=1800 --cov --cov-report= $(ARGS)
	@$(PY) -m coverage report

test-newest: ## Run the tests with the newest versions that pyproject.toml allows
test-oldest: ## Run the tests with the oldest versions that pyproject.toml allows
test-newest test-oldest: test-%:
	@rm -f $(VENV)-$*/.*-installed
	@VERSIONS=$* $(SUBMAKE) test VENV=$(VENV)-$*

test-all: ## Run the tests on every Python from 3.11 to 3.13 that is present
	@PYTHON=$(PYTHON) VENV=$(VENV) bash .ci/test_all.sh

test-mlflow: $(VENV)/.run-installed ## Run the test beside mlflow's autolog, in an environment of its own, for mlflow is large
	@test -x $(VENV)-mlflow/bin/python || $(PY) -m venv $(VENV)-mlflow
	@bash .ci/uv.sh $(VENV) pip install -q --python $(VENV)-mlflow -e '.[dev,mlflow]'
	$(VENV)-mlflow/bin/python -m pytest tests/programs/test_mlflow.py $(ARGS)

check: $(DEV) ## Everything that must hold before a commit: format, lint, types, wheel, each test once
	@$(SUBMAKE) --jobs=2 --output-sync pyright mypy wheel lint
	@$(SUBMAKE) coverage
	$(PYTEST) --hypothesis-profile=ci $(COVERING:%=--ignore=%) $(ARGS)

coverage: $(DEV) ## Check that what must be covered is
	$(PYTEST) --hypothesis-profile=ci --cov --cov-report= $(COVERING)
	@$(PY) -m coverage report --include='$(FULLY_COVERED)' --fail-under=100

lint: $(DEV) ## Check format, style and the directions of imports
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports --no-cache

mypy: $(DEV) ## Check types with mypy
	$(PY) -m mypy

pyright: $(DEV) ## Check types with pyright
	$(PY) -m pyright --pythonpath $(PY)

wheel: $(DEV) ## Build the wheel, install it in an environment of its own, and use it
	@bash .ci/wheel_check.sh $(VENV)

constraints: $(DEV) ## Choose the newest versions allowed, for `make test` and the rest to install
	@echo uv | bash .ci/uv.sh $(VENV) pip compile pyproject.toml - --extra local --extra dev --upgrade --quiet \
		--universal --python-version 3.11 --no-annotate --custom-compile-command 'make constraints' -o constraints.txt

format: $(DEV) ## Format, and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# The peers have an environment of their own: some of them need older versions of what the tests run on.
bench: ## Measure against the peers (BENCH=actors, ARGS=--quick)
	@$(SUBMAKE) $(VENV)-bench/.bench-installed VENV=$(VENV)-bench
	@set -e; for name in $(BENCH); do $(VENV)-bench/bin/python -m benchmarks.$$name $(ARGS); done

reference: $(VENV)/.run-installed ## Write docs/reference anew from the code
	@$(PY) .ci/reference.py docs/reference

conformance: $(VENV)/.run-installed ## Record the behaviour of Erlang/OTP's supervisor anew (needs escript)
	@$(PY) -m tests.conformance.record

clean: ## Remove the environments and everything that was built
	rm -rf $(VENV) $(VENV)-bench $(VENV)-newest $(VENV)-oldest $(VENV)-mlflow $(VENV)-3.* build dist .coverage .coverage.* htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -exec rm -rf {} +

$(VENV)/.run-installed: pyproject.toml constraints.txt
	@bash .ci/install.sh run $@ '$(PYTHON)' $(firstword $(origin PYTHON)) '$(VENV)'

$(VENV)/.dev-installed $(VENV)/.bench-installed: $(VENV)/.%-installed: $(VENV)/.run-installed
	@bash .ci/install.sh $* $@ '$(PYTHON)' $(firstword $(origin PYTHON)) '$(VENV)'
