.DEFAULT_GOAL := help
SHELL := /bin/bash
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
VENV_PEERS := .venv-peers
LOCK := requirements.lock
POSTGRES15 := /usr/lib/postgresql/15/bin
# most tests wait for programs; so more than there are processors
WORKERS := 4
NPM := $(foreach set,e2e adapters emulate,tests/$(set)/node_modules/.package-lock.json)

# where it is set, each of the programs that tests start by the hundred would compile all of its modules anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup bubblewrap demo check format test variants mutants postgres15 soak bench bench-peers lock schema clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.done ## make .venv from the lock file (uv is fetched into .uv when there is none)

$(VENV)/.done: $(LOCK) pyproject.toml
	@set -e; \
	uv=$$(command -v uv || true); \
	if [ -z "$$uv" ]; then \
	  [ -x .uv/bin/uv ] || { python3 -m venv .uv && .uv/bin/pip install -q "uv==$(UV_VERSION)"; }; \
	  uv=.uv/bin/uv; \
	fi; \
	$$uv venv -q --allow-existing --python "$$(command -v python3)" $(VENV); \
	$$uv pip sync -q --compile-bytecode --python $(BIN)/python --require-hashes $(LOCK); \
	$$uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

tests/%/node_modules/.package-lock.json: tests/%/package.json tests/%/package-lock.json
	npm ci --prefix tests/$* --no-audit --no-fund --loglevel=error
	@touch $@

bubblewrap:
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  { apt-get install -y -qq bubblewrap || { apt-get update -qq && apt-get install -y -qq bubblewrap; }; }; } || \
	  { echo "the tests of the sandbox need bubblewrap: install the package bubblewrap (bwrap), then go on" >&2; exit 1; }

demo: setup ## the main job in under a minute: two repositories, six tasks, a kill -9 in the middle
	@$(BIN)/python examples/demo/demo.py

check: setup ## formatting, lint, types, import contracts, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup bubblewrap $(NPM) ## all tests; sets up everything they need
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

variants: setup bubblewrap $(NPM) ## what `make test` tries once, in every way and with every agent
	$(BIN)/python -m pytest -n $(WORKERS) -m variants

mutants: setup ## plant bugs into the store, one after the other, and see its tests find each
	$(BIN)/python -m pytest -n $(WORKERS) -m mutants tests/store

postgres15: setup ## the store's tests on PostgreSQL 15 (the package of that name), where `make test` takes 18
	@[ -x $(POSTGRES15)/postgres ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  { apt-get install -y -qq postgresql-15 || { apt-get update -qq && apt-get install -y -qq postgresql-15; }; }; } || \
	  { echo "install the package postgresql-15, or name its programs: make postgres15 POSTGRES15=/its/bin" >&2; exit 1; }
	POSTGRES_BIN=$(POSTGRES15) $(BIN)/python -m pytest -n $(WORKERS) -k postgres tests/store

soak: setup ## nodes on PostgreSQL under random faults, with an account of it (SECONDS=600, SEED=)
	$(BIN)/python -m tests.faults.soak $(or $(SECONDS),600) $(SEED)

bench: setup $(NPM) ## the figures of README's table, printed and written to benchmarks/results.json
	$(BIN)/python -m benchmarks

$(VENV_PEERS)/.done: benchmarks/peers/requirements.txt
	@set -e; \
	uv=$$(command -v uv || true); \
	if [ -z "$$uv" ]; then \
	  [ -x .uv/bin/uv ] || { python3 -m venv .uv && .uv/bin/pip install -q "uv==$(UV_VERSION)"; }; \
	  uv=.uv/bin/uv; \
	fi; \
	$$uv venv -q --allow-existing --python "$$(command -v python3)" $(VENV_PEERS); \
	$$uv pip sync -q --compile-bytecode --python $(VENV_PEERS)/bin/python --require-hashes $<
	@touch $@

bench-peers: setup $(VENV_PEERS)/.done ## pilot and its peers at the same work: benchmarks/peers/results.json, docs/scaling.md; QUICK=1 only prints
	$(BIN)/python -m benchmarks.peers

lock: ## pin anew (releases of the last seven days are left out)
	uv pip compile pyproject.toml --group dev --extra postgres --universal --generate-hashes \
	  --no-emit-index-url --no-header --exclude-newer "7 days" -o $(LOCK) -q
	uv pip compile benchmarks/peers/requirements.in --python-version 3.11 --universal --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --exclude-newer "7 days" -o benchmarks/peers/requirements.txt -q

schema: setup ## write config/pilot.schema.json from the settings' classes
	$(BIN)/pilot config schema > config/pilot.schema.json

clean: ## remove what setup made
	rm -rf $(VENV) $(VENV_PEERS) .uv tests/e2e/node_modules tests/adapters/node_modules tests/emulate/node_modules
