# Stockade: `make demo` shows it, `make test` checks it. Both set up what they need.
PREFIX ?= /opt/stockade
BIN := $(PREFIX)/venv/bin
export PREFIX

.PHONY: help setup install demo test test-unit test-v2 fuzz bench lint format

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## Debian packages, /opt/stockade/venv, the user stockade, the stockade command
	@scripts/setup

install: ## copy this checkout's packages into the virtual environment
	@scripts/install

demo: setup ## start everything, run good and hostile jobs over HTTP, show what became of them
	@$(BIN)/python -P examples/demo.py

test: setup ## all tests, those on the real kernel included
	$(BIN)/python -m pytest

test-unit: ## the tests that need neither root nor the kernel's help
	$(BIN)/python -m pytest -m "not kernel"

test-v2: setup ## the kernel tests again, in a VM with pure cgroup v2
	tests/vm/run

FUZZ_SECONDS ?= 600
fuzz: setup ## parsers of images and the API with random input, FUZZ_SECONDS (600) each
	STOCKADE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -s tests/worker/test_images_tar.py tests/api/test_schemathesis.py

bench: setup ## one table of figures, side by side with others
	$(BIN)/python -m bench

lint: setup ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: ## put the code into ruff's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .
