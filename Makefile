# `make demo` and `make test` are all a fresh machine needs besides Python 3.11 or newer with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMMANDS := $(VENV)/commands
INSTALLED := $(VENV)/installed
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))
# `make oldest` sets these otherwise.
CONSTRAINTS :=
DEMO := runs/demo
EPOCHS := 60
REFINE_EPOCHS := 300

# Where every core has a process of its own, threads of NumPy's linear algebra wait for one another: a hundred times as
# long, at worst.
test check fast devices processes docs: export OPENBLAS_NUM_THREADS := 1

.PHONY: install demo docs bench test check fast devices processes oldest newest versions lint format clean

install: $(INSTALLED)

# What the commands need, set up anew whenever the dependencies change.
$(COMMANDS): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) --editable ".[experiments]"
	touch $@

# And what the tests need, TensorFlow among it.
$(INSTALLED): $(COMMANDS)
	$(INSTALL) --editable ".[experiments,tfds,dev]"
	touch $@

# Longer chains than the paper's 3 steps: those of a refined stack do not drift.
demo: $(COMMANDS)
	$(BIN)/python -m experiments.mnist_dbm --model=intra_dbm --dataset=mnist_5k --epochs=$(EPOCHS) --refine=pcd \
	    --refine_epochs=$(REFINE_EPOCHS) --gibbs_steps=30 --num_samples=2000 --evaluate_every=0 --workdir=$(DEMO)
	@echo "open $(DEMO)/report.html in a browser"

# The documentation in docs/_build/html, its notebooks executed; a warning or a link that leads nowhere is an error.
# More jobs than cores, as Sphinx gives each some neighbours in the list of pages: the guides, which run, are neighbours.
docs: $(VENV)/documented
	$(BIN)/python -m sphinx --builder=html --fresh-env --jobs=14 --fail-on-warning --keep-going --quiet docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

$(VENV)/documented: $(COMMANDS)
	$(INSTALL) --editable ".[experiments,docs]"
	touch $@

# Without the peers the benchmarks still run, and say which are missing.
bench: install
	$(INSTALL) --editable ".[experiments,bench]" || true
	$(BIN)/python -m benchmarks.run --workdir=runs/bench
	@echo "tables, plots and every timing: runs/bench/table.md growth.png quality.png target.png results.json"

# One process per core, each with whole files, so that what a file sets up once is set up once.
test: lint
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

# Before every push: lint, types and the fast tests.
check: lint fast

# The tests that take no more than about a second each.
fast: versions
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile -m "not slow"

# The fast tests where a mesh of two devices is current, so that the library cuts over both whatever it can.
devices: versions
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile -m "not slow" --mesh=data:2

# The fast tests in two processes that are one cluster, and all tests of trainings over a mesh with devices of both.
processes: versions
	$(BIN)/python tests/two_processes.py -m "not slow"
	$(BIN)/python tests/two_processes.py tests/test_sharding.py tests/test_blocks.py

# The lower bounds of pyproject.toml themselves, in an environment of their own. Few epochs: the question is whether the
# demo runs, not how well it learns.
oldest:
	rm -rf runs/demo-oldest
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=tests/oldest.txt EPOCHS=2 REFINE_EPOCHS=2 \
	    DEMO=runs/demo-oldest fast demo

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
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/vpf_jax/tests"
