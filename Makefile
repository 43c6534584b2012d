# Everything a newcomer or a contributor runs. Only Python 3.11-3.13, git and make are needed.
#
#   make up     from nothing to a running local network        ARGS="..." is passed to `freehold up`
#   make test   from nothing to every test                     FREEHOLD_TEST_SLOW=3 on a slow machine

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
INSTALL := sh scripts/install.sh $(VENV)
COMPILE := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

# safe-pysha3 is five times faster than eth-hash's own first choice.
export ETH_HASH_BACKEND := pysha3

# An environment whose Python is gone, or that was made in another directory, is made again.
$(shell if [ -e $(VENV) ]; then $(PY) -c '' 2>/dev/null && [ "$$(cat $(VENV)/.stamp-python 2>/dev/null)" = "$(CURDIR)" ] \
	|| rm -f $(VENV)/.stamp-*; fi)

.PHONY: help up install dev lint test test-unit test-services test-client test-quorum test-chain test-contracts test-end-to-end test-members test-compute test-gateway test-faults test-servers check format
.PHONY: testnet fuzz soak bench docs lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' Makefile | expand -t 24

up: install ## a running local network, from nothing; Ctrl-C stops it
	@exec $(VENV)/bin/freehold up $(ARGS)

install: $(VENV)/.stamp-node ## the environment that `make up` needs
dev: install $(VENV)/.stamp-dev ## the environment that the tests need

# The stamps are files, so that a second `make up` installs nothing.
$(VENV)/.stamp-python: scripts/bootstrap.sh
	@sh scripts/bootstrap.sh $(VENV)
	@pwd >$@

$(VENV)/.stamp-run: requirements/run.txt pyproject.toml $(VENV)/.stamp-python
	@echo "installing requirements/run.txt into $(VENV)"
	@$(INSTALL) requirements/run.txt
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.stamp-node: requirements/node.txt $(VENV)/.stamp-run
	@if npm --version >/dev/null 2>&1; then echo "npm: the machine's own"; \
	else echo "npm: none here; installing requirements/node.txt into $(VENV)"; $(INSTALL) requirements/node.txt; fi
	@touch $@

$(VENV)/.stamp-dev: requirements/dev.txt $(VENV)/.stamp-run
	@echo "installing requirements/dev.txt into $(VENV)"
	@$(INSTALL) requirements/dev.txt
	@touch $@

$(VENV)/.stamp-servers: requirements/servers.txt $(VENV)/.stamp-dev
	@echo "installing requirements/servers.txt into $(VENV)"
	@$(INSTALL) requirements/servers.txt
	@touch $@

# Where it cannot be built its tests are reported as not run.
$(VENV)/.stamp-s3: scripts/build_s3_server.sh requirements/go.txt $(VENV)/.stamp-python
	@if sh scripts/build_s3_server.sh $(VENV); then touch $@; else echo "the tests' S3 server is not built" >&2; fi

lint: dev ## format, lint, types, layering, generated files
	@$(PY) scripts/suites.py lint

test: dev ## every test, suite by suite, each within its budget
	@$(PY) scripts/suites.py unit services client quorum chain contracts end-to-end members compute gateway faults

test-unit: dev ## unit and property tests of all but services, only
	@$(PY) scripts/suites.py unit

test-services: dev ## unit and property tests of what services do, only
	@$(PY) scripts/suites.py services

test-client: dev ## tests of clients, their buckets and heads, only
	@$(PY) scripts/suites.py client

test-quorum: dev ## tests of the members, simulated quorums among them, only
	@$(PY) scripts/suites.py quorum

test-chain: dev ## tests over a real local chain only
	@$(PY) scripts/suites.py chain

test-contracts: dev ## contract tests only
	@$(PY) scripts/suites.py contracts

test-end-to-end: dev ## tests with real processes only
	@$(PY) scripts/suites.py end-to-end

test-members: dev ## end to end with members that stop, lie and come back, and a network over https; only
	@$(PY) scripts/suites.py members

test-compute: dev ## jobs over real networks: moved, paid, lied about; only
	@$(PY) scripts/suites.py compute

test-gateway: dev ## S3 gateways over real networks, among kills and losses, only
	@$(PY) scripts/suites.py gateway

test-faults: dev ## end to end with liars, silence and a chain that misbehaves only
	@$(PY) scripts/suites.py faults

test-servers: dev $(VENV)/.stamp-servers $(VENV)/.stamp-s3 ## tests against servers that not every machine has
	@$(PY) scripts/suites.py servers

check: lint test ## lint and test

format: dev ## rewrite the code in the project's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

testnet: dev ## the whole network over real validators under consensus, some of which are killed; needs Go
	@exec $(PY) -m testnet.run

fuzz: dev ## property tests at length, from random seeds
	@FREEHOLD_FUZZ=1 $(PY) scripts/suites.py fuzz

soak: dev ## long runs of real networks
	@FREEHOLD_SOAK=1 $(PY) scripts/suites.py soak

bench: dev ## one benchmark: make bench NAME=storage
	@test -n "$(NAME)" || { echo "usage: make bench NAME=storage" >&2; exit 2; }
	@$(PY) -m bench.run $(NAME) $(ARGS)

docs: dev ## write what is generated into docs/: the command reference, the picture, the gas table, the calibration
	@$(PY) scripts/command_reference.py
	@$(PY) scripts/job_fields.py
	@$(PY) scripts/s3_table.py
	@$(PY) scripts/terminal_picture.py
	@$(PY) scripts/gas_table.py
	@$(PY) scripts/calibration_table.py

lock: dev ## compile the locks again; ARGS=--upgrade for newer versions
	@$(COMPILE) $(ARGS) requirements/run.in -o requirements/run.txt
	@$(COMPILE) $(ARGS) requirements/node.in -o requirements/node.txt
	@$(COMPILE) $(ARGS) requirements/go.in -o requirements/go.txt
	@$(COMPILE) $(ARGS) requirements/installer.in -o requirements/installer.txt
	@$(COMPILE) $(ARGS) -c requirements/run.txt -c requirements/installer.txt requirements/run.in requirements/contracts.in requirements/dev.in -o requirements/dev.txt
	@$(COMPILE) $(ARGS) -c requirements/dev.txt requirements/servers.in -o requirements/servers.txt

clean: ## remove the environment and every cache (networks and their accounts stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -not -path './.git/*' -exec rm -rf {} +
