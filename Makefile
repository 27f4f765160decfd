# `make demo` and `make test` are all a fresh machine needs besides Python 3.11 or newer with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# `make oldest` sets these otherwise.
CONSTRAINTS :=
DEMO := runs/demo
EPOCHS := 300

.PHONY: install demo docs bench test check fast oldest newest versions lint format clean

install: $(INSTALLED)

# Set up anew whenever the dependencies change.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS)) \
	    --editable ".[experiments,tfds,dev]"
	touch $@

demo: install
	$(BIN)/python -m experiments.mnist_dbm --model=intra_dbm --dataset=mnist_5k --epochs=$(EPOCHS) \
	    --evaluate_every=100 --workdir=$(DEMO)
	@echo "pictures: $(DEMO)/samples.png filters.png curves.png activations.png; numbers: $(DEMO)/summary.json"

# The documentation in docs/_build/html, its notebooks executed; a warning or a link that leads nowhere is an error.
docs: $(VENV)/documented
	$(BIN)/python -m sphinx --builder=html --fresh-env --jobs=auto --fail-on-warning --keep-going --quiet docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

$(VENV)/documented: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[experiments,docs]"
	touch $@

# Without the peers the benchmarks still run, and say which are missing.
bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[experiments,bench]" || true
	$(BIN)/python -m benchmarks.run --workdir=runs/bench
	@echo "table, plot and every timing: runs/bench/table.md growth.png results.json"

# One process per core, each with whole files, so that what a file sets up once is set up once.
test: lint
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

# Before every push: lint, types and the fast tests.
check: lint fast

# The tests that take no more than about five seconds each.
fast: versions
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile -m "not slow"

# The lower bounds of pyproject.toml themselves, in an environment of their own. Few epochs: the question is whether the
# demo runs, not how well it learns.
oldest:
	rm -rf runs/demo-oldest
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=tests/oldest.txt EPOCHS=3 DEMO=runs/demo-oldest fast demo

# The newest Python and the newest dependencies; skipped aloud where they cannot be had.
newest:
	PYTHON="$(PYTHON)" .ci/newest

versions: install
	@$(BIN)/python --version
	@$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable | \
	    grep -E "^(jax|jaxlib|numpy|flax|optax|orbax-checkpoint|jaxtyping)=="

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
