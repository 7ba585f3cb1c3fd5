# Every target sets up .venv first (tools/setup.sh), which takes no time when nothing changed.
SHELL := bash
PATH := $(CURDIR)/.venv/bin:$(PATH)
export PATH
# Where a machine forbids it, every process compiles torch, transformers and all of priml once more.
unexport PYTHONDONTWRITEBYTECODE

# One thread per test process: the models are tiny, and two processes with two threads each fight over two cores.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup setup-vllm quickstart example test test-fast test-slow test-exhaustive test-ray test-vllm check lint format \
	ci-timings
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */: /' | awk -F': ' '{printf "make %-16s %s\n", $$1, $$2}'

setup:  ## make .venv
	@tools/setup.sh

setup-vllm:  ## make .venv-vllm: trainer and vLLM for CPUs in one environment
	@tools/setup.sh vllm

quickstart: setup  ## train a tiny model from scratch: SFT, PRIME, evaluation, report
	priml quickstart

VLLM := $(filter laptop-vllm,$(NAME))
example: $(if $(VLLM),setup-vllm,setup)  ## run examples at toy size: make example NAME=laptop-math
	OMP_NUM_THREADS=1 $(if $(VLLM),.venv-vllm/bin/)python examples/toys.py $(NAME)

test: lint test-fast  ## lint, types, import order, fast tests

test-fast: setup  ## the fast tests alone
	$(PYTEST) -m "not (slow or exhaustive or ray or vllm)"

test-slow: setup  ## the tests that take minutes
	$(PYTEST) -m "slow and not (exhaustive or ray or vllm)"

test-exhaustive: setup  ## the whole matrices of graders, sandbox and planner; leaves fingerprints to commit
	WORKERS=$(WORKERS) tools/exhaustive.sh

test-ray: setup  ## the tests that start a Ray cluster
	$(PYTEST) -m ray

test-vllm: setup-vllm  ## the tests that need vLLM, in its own environment
	OMP_NUM_THREADS=1 .venv-vllm/bin/pytest -m vllm tests/rollout/test_vllm.py tests/end_to_end/test_cluster_vllm.py \
		tests/benchmarks/test_quick.py

check: format test  ## format, then everything `make test` does

lint: setup  ## ruff, pyright, import order
	ruff check
	ruff format --check
	pyright
	lint-imports

format: setup  ## format the code, fix what can be fixed
	ruff format
	ruff check --fix

ci-timings:  ## where the minutes of the last .ci/run went
	@python3 tools/ci_timings.py
