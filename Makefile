# Every target does its own set-up: see scripts/setup.sh. Start with `make help`.

SHELL := /bin/sh
BIN := .venv/bin
UV ?= uv
# Debian leaves nft and conntrack out of an ordinary user's path.
export PATH := $(PATH):/usr/sbin:/sbin
# From quick to slow, so that what is wrong shows early.
SUITES := $(wildcard tests/unit tests/property tests/contract tests/sim tests/integration tests/e2e)

.PHONY: help demo test crash fuzz sim check mutants bench plugin docs lock clean
.DEFAULT_GOAL := help

help: ## Show this
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-8s %s\n' "$$name" "$$what"; done

demo: ## An emulated region, two nodes, 24 pods, kills and recovery; about a minute
	@scripts/setup.sh demo
	@$(BIN)/vpccni lab demo

test: ## Every test; what had to be skipped is named at the end
	@scripts/setup.sh test
	@$(BIN)/python -m pytest -q -ra --durations=15 $(SUITES)

fuzz: ## The socket (a million requests), the executable and the log, fuzzed at length; half an hour
	@scripts/setup.sh test
	@$(BIN)/python -m tests.fuzz.socket --seed $(or $(SEED),1) --requests 1000000
	@$(BIN)/python -m tests.fuzz.plugin --seconds 180
	@$(BIN)/python -m tests.fuzz.log --seed $(or $(SEED),1) --damages 10000

sim: ## The agent on virtual time with everything going wrong: fixed seeds and a fresh one; two CPU minutes
	@scripts/setup.sh check
	@FRESH_SEED=1 $(BIN)/python -m pytest -q tests/sim/test_seeds.py

crash: ## 1,000 SIGKILLs under load over five seeds, with a table of what was lost; half an hour
	@scripts/setup.sh test
	@$(BIN)/python -m tests.e2e.crash

check: ## Lint, types, import contracts, unit and property tests; within a minute
	@scripts/setup.sh check
	@scripts/check.sh

mutants: ## Plant some fifty bugs, one after the other, and see the simulator find each; writes docs/planted-bugs.md
	@scripts/setup.sh mutants
	@$(BIN)/python -m tests.sim.mutants --write docs/planted-bugs.md

bench: ## Benchmarks against the reference plugins; writes build/bench/report.json
	@scripts/setup.sh bench
	@$(BIN)/python -m bench

plugin: ## The CNI executable, at build/plugin/aws-cni
	@scripts/setup.sh plugin

docs: ## Print docs/settings.md, deploy/iam-policy.json and the table of instance types anew
	@scripts/setup.sh check
	@$(BIN)/python scripts/settings_doc.py >docs/settings.md.tmp && mv docs/settings.md.tmp docs/settings.md
	@$(BIN)/python scripts/iam_policy.py >deploy/iam-policy.tmp && mv deploy/iam-policy.tmp deploy/iam-policy.json
	@$(BIN)/python scripts/instance_types.py >vpccni/instance_types.tmp && mv vpccni/instance_types.tmp vpccni/instance_types.txt

lock: ## Pin the dependencies of pyproject.toml anew, with hashes (needs uv)
	@command -v $(UV) >/dev/null || { echo "lock: needs uv; say UV=/path/to/uv" >&2; exit 2; }
	@$(UV) pip compile --quiet --upgrade --generate-hashes --no-header --no-emit-index-url --python-version 3.11 \
		--extra dev --output-file requirements-dev.lock pyproject.toml
	@$(UV) pip compile --quiet --generate-hashes --no-header --no-emit-index-url --python-version 3.11 \
		--constraint requirements-dev.lock --output-file requirements.lock pyproject.toml

clean: ## Remove what was built, the virtual environment included
	@rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
