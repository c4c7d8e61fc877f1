# Everything a developer or CI runs. `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help install lint format types test test-long test-gpu gpu e2e mutants demo bench wheel check clean map

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv in this folder with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"tap-engine needs Python 3.11 or 3.12, this is {v[0]}.{v[1]}; call make with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: install ## ruff and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: install ## rewrite in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install ## mypy: strict on schemas, pipeline and jobs
	$(BIN)/mypy

test: install ## the test suite, but for test-long; no GPU and no network needed
	$(BIN)/pytest -m "not long" --numprocesses $(JOBS) --dist loadscope

test-long: install ## kills and fuzzing at length, some minutes
	$(BIN)/pytest -m long

test-gpu: install ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu

gpu: install ## all that only a GPU can show, in 25 minutes; goes on where it stopped
	$(BIN)/python -m benchmarks.gpu all --minutes 25

e2e: install ## only the end-to-end tests
	$(BIN)/pytest tests/e2e

mutants: install ## known mistakes, made one at a time in a copy: the tests must fail
	$(BIN)/python -m tests.mutants

check: lint types test ## what must be green before a commit

demo: install ## the whole system on made-up scenes, in some minutes; writes ./demo
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh docs/demo.sh

bench: ## list the benchmarks and how to run each; results are in benchmarks/results
	@grep -hE '^ +python (-m )?benchmarks' benchmarks/*.py

map: ## write docs/map.md and the index of decisions
	@$(PYTHON) docs/write_indexes.py

wheel: install ## build the wheel that a cluster job ships
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what the targets made, but for the data you built
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
