"""What several processes do together: the first one speaks, a folder that all reach, checkpoints in parts of each."""

import json

import jax
import pytest
from processes import ended, start_program

import vpf_jax
from vpf_jax import checkpoint, processes, train
from vpf_jax.checkpoint import CheckpointError

# Of all numbers of a tree.
DIGEST = """
import hashlib
import jax
import numpy as np

def digest(tree):
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        words = jax.random.key_data(leaf) if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        found.update(np.asarray(words).tobytes())
    return found.hexdigest()
"""
# Two processes of two devices each. What each of them finds is its last line, as JSON.
TOGETHER = (
    DIGEST
    + """
import functools, json, logging, os, sys
from pathlib import Path
import jax.numpy as jnp
import vpf_jax
from vpf_jax import checkpoint, processes, sharding, train
from vpf_jax.app import devices, loop

logging.basicConfig(level=logging.WARNING, format="%(message)s")
folder = Path(sys.argv[1])
found = {}

def state(seed, hidden=8):
    stack = vpf_jax.init_stack(jax.random.key(seed), (6, hidden, 4), intra=True)
    return train.init_state(jax.random.key(seed + 1), stack, train.TrainConfig())

def error_of(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]

def damaged(path, part):
    if processes.is_first():
        for file in path.rglob("*"):
            if file.is_file() and part in str(file):
                file.write_bytes(b"damaged")

shapes = jax.eval_shape(lambda: state(0))
wide, other = sharding.make_mesh({"model": 4}), sharding.make_mesh({"data": 2, "model": 2})

def restored(mesh, like=shapes):
    return checkpoint.restore_checkpoint(folder / "kept", sharding.shard(like, mesh))

def save(place, step):
    checkpoint.save_checkpoint(place, step, sharding.shard(state(step), wide), {"rows": [step]})

for step in (1, 2, 3):
    save(folder / "kept", step)
for name, mesh in (("wide", wide), ("other", other)):
    step, tree, info = restored(mesh)
    found[name] = step, info, digest(devices.local(tree)), list(tree.stack[0].weights[0].sharding.spec)
found["another"] = error_of(lambda: restored(wide, jax.eval_shape(lambda: state(0, 12))))
damaged(folder / "kept" / "3", "process_1")
found["before"] = restored(wide)[0]
damaged(folder / "kept" / "2", "")
found["none"] = error_of(lambda: restored(wide))
if processes.is_first():
    (folder / "file").write_text("")
found["unwritten"] = error_of(lambda: save(folder / "file" / "kept", 1))
found["missing"] = checkpoint.restore_checkpoint(folder / "missing", sharding.shard(shapes, wide))
save(folder / "whole", 3)

found["said"] = processes.of_first(lambda: ["by", jax.process_index()])
found["raised"] = error_of(lambda: processes.by_first(lambda: json.loads("{"), KeyError, ValueError))
found["shared"] = str(processes.shared(folder))

def trained(place, epochs):
    start = {"weights": jnp.zeros((2, 8))}
    add = jax.jit(lambda state, epoch: jax.tree.map(lambda a: a + epoch, state))
    phase = loop.Phase(epochs, lambda state: lambda state, epoch: (add(state, epoch), {"loss": 1.0 / epoch}))
    lay = functools.partial(sharding.shard, mesh=wide)
    with devices.own_folder(place) as own:
        made = loop.train(own, start, [phase], checkpoint_every=1, stops=[], place=lay)
    return float(devices.local(made.state)["weights"][0, 0]), len(made.rows)

# One that has another folder under the path at which the first one has its own.
own = folder / f"own-{jax.process_index()}"
own.mkdir()
path = Path(f"/proc/self/fd/{os.open(own, os.O_RDONLY)}")
for name, place in (("together", folder / "run"), ("apart", path)):
    place.mkdir(exist_ok=True)
    found[name] = [trained(place, epochs) for epochs in (2, 3)]
found["own"] = sorted(file.name for file in own.glob("checkpoints/*")), str(processes.shared(path))
print(json.dumps(found))
"""
)


def state(seed):
    stack = vpf_jax.init_stack(jax.random.key(seed), (6, 8, 4), intra=True)
    return train.init_state(jax.random.key(seed + 1), stack, train.TrainConfig())


def digest(tree):
    names: dict = {}
    exec(DIGEST, names)
    return names["digest"](tree)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The folder, what each process has found, and what it has said on standard error."""
    folder = tmp_path_factory.mktemp("together")
    told = ended(start_program(TOGETHER, str(folder), count=2, devices=2))
    assert [status for status, _, _ in told] == [0, 0], told
    return folder, [json.loads(output.splitlines()[-1]) for _, output, _ in told], [errors for *_, errors in told]


@pytest.mark.slow
def test_parts_of_several_processes_come_back_over_the_same_and_other_devices(found):
    expected = digest(state(3))
    for one in found[1]:
        assert one["wide"] == one["other"] == [3, {"rows": [3]}, expected, [None, "model"]]


@pytest.mark.slow
def test_one_process_reads_what_several_have_written(found):
    folder = found[0] / "whole"
    parts = {path.name for path in (folder / "3" / "arrays").glob("ocdbt.process_*")}
    assert parts == {"ocdbt.process_0", "ocdbt.process_1"}
    step, tree, info = checkpoint.restore_checkpoint(folder, state(0))
    assert (step, info) == (3, {"rows": [3]})
    assert digest(tree) == digest(state(3))
    record = json.loads((folder / "3" / "record.json").read_text())
    assert (record["format"], record["sha256"]) == (2, None)


@pytest.mark.slow
def test_all_processes_pass_over_what_is_damaged_and_one_says_so(found):
    folder, (first, second), errors = found
    assert first["before"] == second["before"] == 2
    assert "checkpoint 3 in" in errors[0]
    assert "is damaged" not in errors[1]
    assert (folder / "kept" / "3.damaged").exists()
    for one in (first, second):
        assert one["none"][0] == "CheckpointError"
        assert "are damaged; put back a copy of one" in one["none"][1]
        assert one["another"][0] == "CheckpointMismatchError"
        assert "where stack/0/biases/1 of shape (12,)" in one["another"][1]


@pytest.mark.slow
def test_what_the_first_process_cannot_do_all_learn(found):
    for one in found[1]:
        kind, told = one["unwritten"]
        assert kind == "CheckpointError"
        assert "kept/1 cannot be written" in told
        assert "Not a directory" in told
        assert one["missing"] is None
        assert one["said"] == ["by", 0]
    # Of a kind that was not named.
    assert [one["raised"][0] for one in found[1]] == ["JSONDecodeError", "KeyError"]


@pytest.mark.slow
def test_a_folder_is_shared_where_all_see_what_the_first_one_writes(found):
    folder, both, _ = found
    for one in both:
        assert one["shared"] == str(folder)
        assert one["own"][1] == "None"
    assert not list(folder.rglob(".seen-by-all*"))


@pytest.mark.slow
def test_a_training_goes_on_whether_or_not_all_reach_its_folder(found):
    folder, both, _ = found
    for one in both:
        # 1 + 2, and 3 of the next start.
        assert one["together"] == one["apart"] == [[3.0, 2], [6.0, 3]]
    assert both[0]["own"][0] == ["2", "3"]
    assert both[1]["own"][0] == []
    kept = {json.loads(file.read_text())["format"] for file in folder.glob("own-0/checkpoints/*/record.json")}
    assert kept == {1}
    assert {json.loads(file.read_text())["format"] for file in folder.glob("run/checkpoints/*/record.json")} == {2}


def test_one_process_is_all_of_them(tmp_path):
    assert processes.is_first()
    assert processes.of_first(lambda: (1, None)) == (1, None)
    assert processes.shared(tmp_path) == tmp_path
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="own"):
        processes.by_first(lambda: refuse("own"), ValueError)


def refuse(told):
    raise CheckpointError(told)
