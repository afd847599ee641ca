# `make demo` and `make test` do all the set-up on a machine with Python 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := .stamps
UV_VERSION := 0.12.24

.PHONY: help install demo federation test test-all lint lock images-check clean

help:
	@echo "make install   only install, into .venv"
	@echo "make demo      write phantom hospitals, federate over them, show the report (about 4 minutes)"
	@echo "make federation  a coordinator and three phantom hospitals as processes of their own, over TLS (about 4 minutes; needs nginx)"
	@echo "make test      lint, types, architecture, and every test that is neither slow nor a deployment"
	@echo "make test-all  everything"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make lock      make the lock files anew from pyproject.toml"
	@echo "make images-check  build both container images and play a federation in them (as root; 20 minutes, 40 GB)"

$(STAMPS)/venv:
	@mkdir -p $(STAMPS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(STAMPS)/installed: $(STAMPS)/venv requirements.lock pyproject.toml
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python -e .
	@touch $@

$(STAMPS)/developer: $(STAMPS)/installed requirements-dev.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --python $(BIN)/python -r requirements-dev.lock
	@touch $@

install: $(STAMPS)/installed

demo: $(STAMPS)/installed
	rm -rf runs/phantoms
	$(BIN)/aiseeme-site phantom runs/phantoms --kind dermoscopy --sites 4 --images 120
	$(BIN)/aiseeme simulate demo $(foreach n,1 2 3 4,--data runs/phantoms/phantom-dermoscopy-$(n))

federation: $(STAMPS)/installed
	$(BIN)/python -m scripts.loopback runs/federation-$$(date +%Y%m%d-%H%M%S)

lint: $(STAMPS)/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/pytest -m "not slow and not deployment"

test-all: lint
	$(BIN)/pytest

lock: $(STAMPS)/venv
	$(BIN)/uv pip compile pyproject.toml -c constraints.txt --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -q -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --group dev -c requirements.lock --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -q -o requirements-dev.lock

images-check:
	docker/check.sh

clean:
	rm -rf $(VENV) $(STAMPS) .pytest_cache .mypy_cache .ruff_cache
