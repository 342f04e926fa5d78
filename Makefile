# `make quickstart` and `make test` install what they need into .venv; nothing else has to be set up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tiny models: more threads than one only wait for each other.
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: install quickstart test test-all lint format docs clean

install: $(INSTALLED)

# torch goes first and by itself: pip then has no reason to pick another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

quickstart: install
	$(BIN)/python -m lit_align fit --config configs/quickstart/sft.yaml --overwrite true
	$(BIN)/python -m lit_align fit --config configs/quickstart/reward.yaml --overwrite true
	$(BIN)/python -m lit_align fit --config configs/quickstart/dpo.yaml --overwrite true
	$(BIN)/python -m lit_align fit --config configs/quickstart/rrhf.yaml --overwrite true
	$(BIN)/python -m lit_align fit --config configs/quickstart/online_dpo.yaml --overwrite true
	$(BIN)/python -m lit_align fit --config configs/quickstart/ppo.yaml --overwrite true
	$(BIN)/python -m lit_align compare runs/quickstart
	$(BIN)/python -m lit_align fit --config configs/assistant/sft.yaml --overwrite true
	$(BIN)/python -m lit_align fit --config configs/assistant/spa.yaml --overwrite true
	$(BIN)/python -m lit_align compare runs/assistant

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-all: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info
