"""Models in files: round trips of every family, damage at every place, what is not known, a kill in the middle."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from families import CASES, assert_same_machine

import vpf_jax
from vpf_jax import models, units
from vpf_jax.models import FORMAT, ModelError, described_model, load_model, save_model

ROOT = Path(__file__).parents[1]
ABOUT = {"rule": "vpf", "settings": {"epochs": 3, "hidden": [4, 3]}, "data": {"name": "spikes", "names": ["a", "ä"]}}


def stack(intra=True):
    return vpf_jax.init_stack(jax.random.key(0), (5, 4, 3), intra)


def assert_same_stack(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert_same_machine(a, b, 0)
        assert jax.tree.map(lambda leaf: leaf.dtype, a) == jax.tree.map(lambda leaf: leaf.dtype, b)
        assert a.units == b.units


@pytest.mark.parametrize("case", [case for name, case in CASES.items() if name.endswith("peaked")], ids=repr)
def test_every_family_comes_back(case, tmp_path):
    machines = case.machine, vpf_jax.with_units(case.machine, units.SPIN)
    directed = [] if not case.machine.weights else [vpf_jax.untie(jax.random.key(1), case.machine)]
    for machine in (*machines, *directed):
        save_model(tmp_path / "model", (machine,))
        found = load_model(str(tmp_path / "model"))
        assert_same_stack(found.stack, (machine,))
        assert found.about == {}


def test_a_stack_comes_back_with_what_was_said_of_it(tmp_path):
    mixed = tuple(dataclasses.replace(machine, units=units.SPIN) for machine in stack())
    for given in (stack(), stack(intra=False), vpf_jax.untie_stack(None, stack()), mixed):
        vpf_jax.save_model(tmp_path / "model", given, ABOUT)
        found = vpf_jax.load_model(tmp_path / "model")
        assert_same_stack(found.stack, given)
        assert found.about == ABOUT
    assert described_model(tmp_path / "model") == {
        "version": vpf_jax.__version__,
        "machines": [
            {"sizes": [5, 4], "intra": [1], "directed": False, "units": ["spin", "spin"]},
            {"sizes": [4, 3], "intra": [1], "directed": False, "units": ["spin", "spin"]},
        ],
        "about": ABOUT,
    }


def test_the_same_model_is_the_same_bytes_and_other_programs_read_it(tmp_path):
    for name in ("one", "other"):
        save_model(tmp_path / name, stack(), ABOUT)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    weights = safetensors.numpy.load_file(tmp_path / "one")["0/weights/0"]
    np.testing.assert_array_equal(weights, stack()[0].weights[0])
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_back(dtype, tmp_path):
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), stack())
    save_model(tmp_path / "model", narrow)
    assert_same_stack(load_model(tmp_path / "model").stack, narrow)


def test_double_precision_comes_back_or_is_refused(tmp_path):
    with jax.enable_x64(True):
        wide = (CASES["intra_dbm-moderate"].machine,)
        assert wide[0].biases[0].dtype == jnp.float64
        save_model(tmp_path / "model", wide)
        assert_same_stack(load_model(tmp_path / "model").stack, wide)
    with pytest.raises(ModelError, match=r"got .*model, .* parameters of float64; that takes jax\.config"):
        load_model(tmp_path / "model")


def test_what_no_file_can_hold_is_refused(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(ValueError, match="got a coupling of kind OneToOne; a file takes matrices"):
        save_model(path, families.one_to_one()[:1])
    stranger = dataclasses.replace(units.BINARY, name="stranger")
    with pytest.raises(ValueError, match=r"got units=.*; it takes registered ones"):
        save_model(path, (dataclasses.replace(stack()[0], units=stranger),))
    with pytest.raises(ValueError, match="of dtype float8_e4m3fn in the stack; a file takes float64, float32"):
        save_model(path, jax.tree.map(lambda leaf: leaf.astype(jnp.float8_e4m3fn), stack(intra=False)))
    for about in ({"rate": np.nan}, {"rate": np.float32(1)}, {"rule": object()}):
        with pytest.raises(ValueError, match="got about with other values than JSON can hold"):
            save_model(path, stack(), about)
    assert not path.exists()


def written(path, record=None, tensors=None, **changed):
    """A file whose digest is right, of a record that is changed."""
    tensors = models._tensors(stack()) if tensors is None else tensors
    if record is None:
        save_model(path, stack(), ABOUT)
        record = described_model(path) | {"format": FORMAT} | changed
        record["sha256"] = models._digest(record, tensors)
    path.write_bytes(safetensors.numpy.save(tensors, {"vpf_jax": json.dumps(record)}))


def machines(**changed):
    found = {"sizes": [5, 4], "intra": [1], "directed": False, "units": ["binary"] * 2}
    return [found | changed, found | {"sizes": [4, 3]}]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"format": FORMAT + 1, "version": "9.0"}, f"is of format {FORMAT + 1}, which vpf_jax 9.0 has written; this"),
        ({"colour": "red"}, "is damaged: what it holds is not what was saved"),
        ({"machines": machines(units=["ternary"] * 2)}, "got unit=ternary; it takes one of binary, spin"),
        ({"machines": machines(sizes=[5, 5])}, "machine 0 has leaves of shapes .*, where .* are described"),
        ({"machines": machines(intra=[])}, "machine 0 has leaves of shapes .*intra/1"),
        ({"machines": machines(directed=True)}, "machine 0 has leaves of shapes .*backward/0"),
        ({"machines": machines(couplings="edges")}, "machine 0 is described by .*couplings"),
        ({"machines": machines()[:1]}, "1/biases/0 belongs to no machine"),
        ({"machines": machines(sizes=None)}, "holds no model that can be used here"),
        ({"machines": []}, "got no machine for the stack"),
    ],
)
def test_what_is_not_known_is_refused_in_one_sentence(changed, told, tmp_path):
    written(tmp_path / "model", **changed)
    with pytest.raises(ModelError, match=told) as refusal:
        load_model(tmp_path / "model")
    assert "\n" not in str(refusal.value)
    assert str(tmp_path / "model") in str(refusal.value)


def test_parameters_that_make_no_machine_are_refused(tmp_path):
    tensors = models._tensors(stack())
    for name, value, told in (
        ("0/weights/0", np.full((5, 4), np.nan, np.float32), "are not finite"),
        ("0/intra/1", np.ones((4, 4), np.float32), "no symmetric matrix with zero diagonal"),
        ("0/biases/0", np.zeros(5, np.int32), "holds parameters of type I32; they are F64"),
    ):
        written(tmp_path / "model", tensors=tensors | {name: value})
        with pytest.raises(ModelError, match=told):
            load_model(tmp_path / "model")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match="which does not exist; it takes a file of save_model"):
        load_model(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"which cannot be read \(Is a directory\); it takes"):
        load_model(tmp_path)
    for content in (b"", b"\0" * 8, b"PK\3\4", json.dumps(ABOUT).encode(), np.random.default_rng(0).bytes(1000)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ModelError, match="is no safetensors file, or a damaged one"):
            load_model(tmp_path / "other")
    safetensors.numpy.save_file({"a": np.ones(3)}, tmp_path / "other")
    with pytest.raises(ModelError, match="is a safetensors file of something else"):
        load_model(tmp_path / "other")
    for record in ("{", "[]", "3", "{}", '{"format": 1}'):
        (tmp_path / "other").write_bytes(safetensors.numpy.save({"a": np.ones(3)}, {"vpf_jax": record}))
        with pytest.raises(ModelError, match="is damaged: its metadata cannot be read"):
            load_model(tmp_path / "other")


def test_damage_at_every_byte_is_said(tmp_path):
    path = tmp_path / "model"
    save_model(path, vpf_jax.init_stack(jax.random.key(0), (3, 2), intra=True), {"rule": "vpf"})
    sound = path.read_bytes()
    for place in range(len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        with pytest.raises(ModelError):
            load_model(path)
    for content in (*(sound[:end] for end in range(0, len(sound), 50)), sound + b"\0", sound * 2):
        path.write_bytes(content)
        with pytest.raises(ModelError):
            load_model(path)
    path.write_bytes(sound)
    assert load_model(path).about == {"rule": "vpf"}


def test_a_failure_in_the_middle_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model"
    save_model(path, stack(), {"number": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as refusal:
            save_model(path, stack(), {"number": 2})
    assert refusal.value.filename == str(path)
    assert load_model(path).about == {"number": 1}


KILLED = """
import os, signal, sys
import jax, vpf_jax
replace = os.replace
def killed(*paths):
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = killed
vpf_jax.save_model(sys.argv[1], vpf_jax.init_stack(jax.random.key(0), (5, 4)), {"number": 2})
"""


@pytest.mark.slow
def test_a_kill_while_it_is_written_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "model"
    save_model(path, stack(), {"number": 1})
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, capture_output=True)
    assert ended.returncode == -9
    assert load_model(path).about == {"number": 1}
    # What is left behind is in nobody's way.
    save_model(path, stack(), {"number": 3})
    assert [found.name for found in tmp_path.iterdir()] == ["model"]
