# Two commands matter: `make run` and `make test`. Each makes .venv with the pinned versions first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

help: ## List these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pipeline.running.install -e '.[hf,dev]'
	@PREFECT_HOME=$(CURDIR)/.prefect DO_NOT_TRACK=1 $(BIN)/prefect server database upgrade --yes >/dev/null
	@touch $@

setup: $(VENV)/ready ## Make .venv with the pinned versions, and Prefect's database

run: $(VENV)/ready ## Run the whole chain at the tiny preset; what is in the store is reused
	$(BIN)/python flows.py run

ui: $(VENV)/ready ## Start the Prefect UI over the same history
	$(BIN)/python flows.py ui

test: $(VENV)/ready ## All tests, the whole chain through Prefect among them
	$(BIN)/python -m pytest

clicks: $(VENV)/ready ## Clicks through the UI, and from a hostile page, in headless Chromium, which must be on the PATH
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -m browser tests/browser

gpu: $(VENV)/ready ## The Triton kernels' tests on a CUDA device instead of the interpreter
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/kernels/triton

format: $(VENV)/ready ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/ready ## Formatting and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/ready ## Types, with pyright
	$(BIN)/pyright

imports: $(VENV)/ready ## Who may import whom
	$(BIN)/lint-imports

check: lint types imports ## Format, lint, types and imports

native: $(VENV)/ready ## Build the C++ kernels, which CPU tensors use from then on (20 seconds; needs g++ or clang++)
	$(BIN)/python -m kernels.backends

bench: $(VENV)/ready ## Build the C++ kernels and measure all against plain PyTorch, as ratios in one process
	$(BIN)/python -m tests.benchmarks.kernels

aot: $(VENV)/ready ## Compile every Triton kernel for sm_80, sm_90 and gfx942, and print its registers
	$(BIN)/python -m tests.kernels.triton.aot --all

faults: $(VENV)/ready ## Every fault at every file operation, counted: what was lost, what was corrupt, what hung
	$(BIN)/python -m tests.faults

science: $(VENV)/ready ## Planted superposition at full size, looked for by the tests of pipeline/examining, counted
	$(BIN)/python -m tests.science.planted
	$(BIN)/python -m tests.science.hidden

tree: $(VENV)/ready ## Lineage of everything in the store
	$(BIN)/python -m artifacts tree

.PHONY: help setup run ui test clicks gpu format lint types imports check native bench aot faults science tree
