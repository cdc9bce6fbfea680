# graphc: `make demo` and `make test` work on a fresh machine; `make` alone lists what there is.

PYTHON ?=
VENV   := .venv
BIN    := $(VENV)/bin
# pytest's own arguments, for example: make test PYTEST="-x -k lenet"
PYTEST ?= -n 2 --dist worksteal
OUT    ?= graphc-demo

SHARED_TOOLS := $(abspath ../shared/tools)
ifneq ($(wildcard $(SHARED_TOOLS)),)
export GRAPHC_SHARED_TOOLS ?= $(SHARED_TOOLS)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-full onnx-support lint format wheel clean
.NOTPARALLEL:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(BIN)/.demo  ## train a LeNet on handwritten digits by generated C (everything is installed first)
	@$(BIN)/graphc demo --out $(OUT)

test: $(BIN)/.test  ## run all tests, those against PyTorch included
	@$(BIN)/python -m pytest $(PYTEST)

test-full: $(BIN)/.test  ## what takes too long for every run, such as 30 steps of every full-size net
	@GRAPHC_FULL=1 $(BIN)/python -m pytest tests/test_models_training.py tests/test_models_torch.py \
	    tests/test_poison.py tests/test_chunked.py tests/test_emitted_bits.py tests/test_emitted_sanitized.py \
	    tests/test_emitted_warnings.py tests/test_commands.py tests/test_cli.py tests/test_onnx_export.py \
	    tests/test_onnx_finetune.py tests/test_onnx_models.py tests/test_onnx_torch.py

onnx-support: $(BIN)/.test  ## run all of ONNX's own tests and write docs/onnx_support.md (some minutes)
	@$(BIN)/python docs/onnx_support.py

lint: $(BIN)/.test  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(BIN)/.test  ## write the code in the agreed style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(BIN)/.test  ## build dist/graphc-*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) build dist graphc-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The environment is made once, and filled again when pyproject.toml has changed. A stamp is written last,
# so that what was interrupted is done again.
$(BIN)/.environment: .ci/prepare
	@.ci/prepare $(VENV) $(PYTHON)
	@touch $@

$(BIN)/.demo: $(BIN)/.environment pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	@touch $@

# PyTorch first and by itself: what needs it later then takes the build that is there.
$(BIN)/.test: $(BIN)/.environment pyproject.toml
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --editable '.[dev,torch]'
	@touch $@
