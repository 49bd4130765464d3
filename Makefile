# All set-up happens here: `make demo` and `make test` need only Python 3.10 or newer.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

CHECKPOINT ?= benchmarks/demo_checkpoint/checkpoint
PICTURE ?= benchmarks/demo_checkpoint/pictures/00-octopus.png
QUESTION ?= What is this?

.PHONY: demo test lint kernels clean

demo: build/demo/manifest.json
	$(BIN)/lladav run build/demo --image '$(PICTURE)' --prompt '$(QUESTION)'

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# For GPUs; needs the CUDA toolkit, and no GPU.
kernels:
	cmake -B build/cmake
	cmake --build build/cmake --target kernels

clean:
	rm -rf .venv build runtime/kernels/*.fatbin dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Without PyTorch, which is large; `lladav export` compares with it by default.
build/demo/manifest.json: $(wildcard $(CHECKPOINT)/*) $(wildcard export/*.py) | $(VENV)/.export
	rm -rf build/demo
	$(BIN)/lladav export '$(CHECKPOINT)' build/demo --no-verify

$(VENV)/.export: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP_INSTALL) --editable '.[export]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/.made:
	@test -n '$(PYTHON)' || { echo 'no Python 3.10 or newer was found: install one, or pass PYTHON=...'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@
