"""Keys: one per seed and purpose, and the only ones of the programs."""

import ast
import itertools
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpf_jax.app.keys import as_array, key_for

ROOT = Path(__file__).parents[2]
FILES = sorted(
    itertools.chain.from_iterable((ROOT / f).glob("*.py") for f in ("vpf_jax/app", "experiments", "benchmarks"))
)


def calls(name):
    """(file, call) for every call of a function of this name in the programs."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield file.name, node


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


@pytest.mark.slow
def test_each_purpose_stands_at_one_place():
    purposes = [call.args[1] for _, call in calls("key_for")]
    assert all(isinstance(purpose, ast.Constant) and isinstance(purpose.value, str) for purpose in purposes)
    counts = Counter(purpose.value for purpose in purposes)
    assert len(counts) > 15
    assert [purpose for purpose, count in counts.items() if count > 1] == []


def test_programs_make_no_keys_of_their_own():
    for name in ("jax.random.key", "jax.random.PRNGKey", "jax.random.fold_in", "np.random.default_rng"):
        found = [file for file, _ in calls(name) if file != "keys.py"]
        # The benchmarks draw with NumPy states of machines that they time, and images for scikit-learn's pipelines.
        drawing = ("cases.py", "peers.py", "pipeline.py") if name == "np.random.default_rng" else ()
        assert not [file for file in found if file not in drawing]


def test_keys_of_seeds_and_purposes_and_numbers_differ():
    found = {
        data(key_for(seed, purpose, *numbers))
        for seed in (0, 1, 2**31, 2**32 - 1)
        for purpose in ("training", "repair", "machines at the start")
        for numbers in ((), (0,), (1,), (1, 0))
    }
    assert len(found) == 4 * 3 * 4


def test_repair_and_training_share_no_numbers():
    """Nor do the pieces that either makes of its key."""
    for seed in range(3):
        pieces = []
        for purpose in ("training", "repair"):
            key = key_for(seed, purpose)
            pieces.append({data(key), *map(data, jax.random.split(key_for(seed, purpose), 4))})
            pieces[-1] |= {data(jax.random.fold_in(key_for(seed, purpose), epoch)) for epoch in range(4)}
        assert not pieces[0] & pieces[1]


def test_a_key_is_the_same_wherever_it_is_made():
    # The numbers are part of what runs are found again by: they must not change by accident.
    assert data(key_for(0, "training")) == (417252575, 1098989946)
    seeds = (0, 5, 2**31, 2**32 - 1)
    mapped = jax.jit(jax.vmap(lambda seed: key_for(seed, "training", 3)))(as_array(seeds))
    assert [data(key) for key in mapped] == [data(key_for(seed, "training", 3)) for seed in seeds]
    assert data(jax.jit(lambda epoch: key_for(5, "training", epoch))(jnp.int32(3))) == data(key_for(5, "training", 3))


@pytest.mark.parametrize("seed", [2**32, -1])
def test_a_seed_out_of_range_is_no_other_seed(seed):
    with pytest.raises(OverflowError):
        key_for(seed, "training")
