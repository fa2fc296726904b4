# Every target only calls run.py with the first Python that runs; run.py chooses the Python for .venv.
# Arguments: make demo ARGS="--operations 5000", make test ARGS="-k waves".

PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do \
	if $$p -c '' >/dev/null 2>&1; then echo $$p; break; fi; done)
RUN = $(or $(PYTHON),$(error No Python found. Install Python 3.11 or newer: apt-get install python3 python3-venv, or brew install python@3.13)) run.py

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-directory bench-isolation bench-provisioning bench-writing mutants fuzz faults count setup tools site peers clients audit lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile

demo: ## Run the main job on an embedded stack, with live progress
	@$(RUN) demo $(ARGS)

test: ## Run the tests
	@$(RUN) test $(ARGS)

lint: ## Run ruff, mypy and import-linter
	@$(RUN) lint

bench: ## Measure the throughput of one core, beside a bare loop and async-kinesis; writes docs/performance.md
	@$(RUN) bench throughput $(ARGS)

bench-directory: ## Measure routing, memory and stalls with 500 databases and 10,000 tenants
	@$(RUN) bench directory $(ARGS)

bench-isolation: ## Measure the cost of each failure of one Postgres shard for the others
	@$(RUN) bench isolation $(ARGS)

bench-provisioning: ## Measure the time that 200 new tenants at once take, on empty shards
	@$(RUN) bench provisioning $(ARGS)

bench-writing: ## Measure the cost of the stream position that each batch writes
	@$(RUN) bench writing $(ARGS)

mutants: ## Mutate the pure modules and try the unit tests on each mutant; an hour
	@$(RUN) mutants $(ARGS)

fuzz: ## Send made-up inputs to all that parses what comes from outside; ARGS="--seconds 3600" for an hour
	@$(RUN) fuzz $(ARGS)

faults: ## Have real processes go through faults, and judge their histories; SEED=1 MINUTES=5
	@$(RUN) faults $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

count: ## Count lines and words by part, beside their bounds
	@$(RUN) count

setup: ## Make .venv with everything for development
	@$(RUN) setup

tools: ## Make .venv-tools, with checkers of deploy/, HTTP and SQS
	@$(RUN) tools

site: ## Build the documentation site into site/, and check its links
	@$(RUN) site $(ARGS)

peers: ## Build the programs of other vendors that tests/peers runs
	@$(RUN) peers $(ARGS)

clients: ## Build the packages for producers, in TypeScript and Python, into dist/
	@$(RUN) clients

audit: ## Look for advisories about the pins
	@$(RUN) audit $(ARGS)

lock: ## Compile requirements/*.txt again
	@$(RUN) lock $(ARGS)

clean: ## Remove the environments and caches
	@$(RUN) clean
