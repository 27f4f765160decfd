# `make demo` and `make test` are all a fresh machine needs besides Python 3.11 or newer with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: install demo bench test lint format clean

install: $(INSTALLED)

# Set up anew whenever the dependencies change.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[experiments,tfds,dev]"
	touch $@

demo: install
	$(BIN)/python -m experiments.mnist_dbm --model=intra_dbm --dataset=mnist_5k --epochs=300 \
	    --evaluate_every=100 --workdir=runs/demo
	@echo "pictures: runs/demo/samples.png filters.png curves.png activations.png; numbers: runs/demo/summary.json"

# Without the peers the benchmarks still run, and say which are missing.
bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[experiments,bench]" || true
	$(BIN)/python -m benchmarks.run --workdir=runs/bench
	@echo "table, plot and every timing: runs/bench/table.md growth.png results.json"

# One process per core, each with whole files, so that what a file sets up once is set up once.
test: lint
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
