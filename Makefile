# One command each; `make help` lists them. `make quickstart` is the README's first command, `make test` its second.
#
# Everything runs in BIN: the active virtual environment, else .venv, which the first target makes.
PYTHON ?= python3
VENV ?= .venv
BIN ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV)/bin,$(VENV)/bin)
TORCH ?= torch>=2.11,<2.14
# A laptop without an NVIDIA GPU downloads 200 MB instead of 3 GB with
#   make quickstart TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_FLAGS ?=
# Steps of the quickstart; empty: the recipe's own.
STEPS ?=
# What `make gpu-<data>` trains.
METHOD ?= deepcompress
MODEL ?= qwen2_5_0_5b_instruct
ARGS ?=
# Processes that test; each takes up to 2 GB of memory.
WORKERS ?= 2
# Where the docs' blocks run with few steps.
DOCS := README.md docs/add_a_method.md docs/eval.md docs/tts.md

PIP = $(BIN)/python -m pip
# Its date says when the development tools of pyproject.toml were installed. Not the file of a tool: other packages bring some.
DEV = $(BIN)/../.reasonrl-dev
TIMED = start=$$(date +%s); $(1); echo "$(2): $$(( $$(date +%s) - start )) s"

.PHONY: help
help: ## this list
	@grep -hE '^[a-z][a-z0-9%-]*:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

# Installing

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "reasonrl needs Python 3.11 or 3.12, $(PYTHON) is another: make ... PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(patsubst %/bin,%,$(BIN))

.PHONY: venv install
venv: $(BIN)/python ## a virtual environment in .venv, unless one is active

install: $(BIN)/python ## PyTorch, then this folder with its development tools
	@set -e; $(call TIMED,$(PIP) install --quiet $(TORCH_FLAGS) '$(TORCH)'; $(PIP) install --quiet -e '.[dev]',install)
	@touch $(DEV)

$(BIN)/reasonrl: | $(BIN)/python
	@set -e; $(call TIMED,$(PIP) install --quiet $(TORCH_FLAGS) '$(TORCH)'; $(PIP) install --quiet -e .,install)

$(DEV): pyproject.toml | $(BIN)/reasonrl
	$(PIP) install --quiet -e '.[dev]'
	@touch $(DEV)

# Running

.PHONY: quickstart
quickstart: | $(BIN)/reasonrl ## install, then train DeepCompress on the embedded model (minutes, CPU)
	@set -e; $(call TIMED,$(BIN)/reasonrl recipe=deepcompress/tiny $(if $(STEPS),steps=$(STEPS)) $(ARGS),start-up and training)

.PHONY: gpu-%
gpu-%: | $(BIN)/reasonrl ## GPU run on a data set: make gpu-gsm8k METHOD=grpo MODEL=qwen2_5_0_5b_instruct ARGS="steps=50"
	$(BIN)/reasonrl method=$(METHOD) model=$(MODEL) data=$* $(ARGS)

# Checking

.PHONY: check test test-slow docs
check: $(DEV) ## lint, format, types (seconds)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(DEV) ## the tests, CPU only, at most 8 minutes on 2 cores
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(DEV) ## the long tests
	$(BIN)/python -m pytest -m slow

docs: export REASONRL_DOC_STEPS ?= 2
docs: | $(BIN)/reasonrl ## run the code blocks of README and docs, with few steps
	$(BIN)/python docs/run_blocks.py $(DOCS)

.PHONY: bench
bench: $(DEV) ## every benchmark
	@set -e; for file in benchmarks/overhead.py benchmarks/credit.py benchmarks/item_response.py benchmarks/splitting.py; do echo "$$file"; $(BIN)/python "$$file"; done

.PHONY: wheel wheel_test clean
wheel: $(DEV) ## dist/*.whl
	rm -rf build
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

wheel_test: $(DEV)
	$(BIN)/python -m pytest tests/test_wheel.py

clean: ## what building and testing left behind; runs and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
