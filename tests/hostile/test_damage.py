"""A damage campaign: every file of a finished and of a half-finished run, damaged in ten ways, one at a time.

The command's `run` is called in this process, on few images, with its programs compiled once, and its pictures and
scores replaced by what is quick and depends on the same.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vpf_jax
from experiments import ising_recovery, mnist_dbm
from vpf_jax import figures, train
from vpf_jax.app import command as cli
from vpf_jax.app import compare
from vpf_jax.app import runs as app_runs
from vpf_jax.app.folder import MetricsFile
from vpf_jax.app.recipes import Recipe
from vpf_jax.checkpoint import CheckpointError
from vpf_jax.data import Part, load_dataset
from vpf_jax.evaluate import generation

SETTINGS = {
    "model": "rbm",
    "hidden": (6,),
    "epochs": 4,
    "batch_size": 20,
    "num_samples": 20,
    "checkpoint_every": 1,
    "evaluate_every": 2,
}
# What differs from one run to the next.
TIMINGS = ("train_seconds", "seconds_per_epoch")
COUNTS = Counter()


def flip(data, place):
    """One bit at a place from 0 to 1, its number following from it too."""
    if not data:
        return b"\x01"
    byte = int(place * (len(data) - 1))
    return data[:byte] + bytes([data[byte] ^ 1 << byte % 8]) + data[byte + 1 :]


DAMAGES = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "{}": lambda data: b"{}",
    "[]": lambda data: b"[]",
    "null": lambda data: b"null",
    "random": lambda data: np.random.default_rng(len(data)).bytes(max(len(data), 1)),
    "first bits": lambda data: flip(data, 0.02),
    "middle bit": lambda data: flip(data, 0.5),
    "late bit": lambda data: flip(data, 0.9),
    "deleted": None,
}


def small_data():
    data = load_dataset("mnist_5k")
    parts = {
        name: Part(getattr(data, name).examples[:size], getattr(data, name).labels[:size])
        for name, size in (("train", 200), ("validation", 20), ("test", 20))
    }
    return dataclasses.replace(data, **parts)


def draw_digest(*arrays, **options):
    """Stands for a picture: it depends on what is shown."""
    shown = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), arrays)
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def score(centres, validation, test):
    """Stands for a Parzen score: it depends on every centre."""
    value = float(np.asarray(centres, np.float64).sum())
    return {"sigma": 0.1, "validation_mean": value, "mean": 2 * value, "sem": 1.0}


def compare_digests(folder, title, key, stack, centres, *data):
    """In the place of `app.compare`, whose sums take long."""
    figures.save(folder / compare.NAME, draw_digest(centres, title=title))
    return {}


@pytest.fixture(scope="module", autouse=True)
def reduced():
    """Few images, few samplers, no pictures, and every program compiled once."""
    data, compile_epoch, compiled = small_data(), train.compile_epoch, {}

    def compile_once(state, visible, config, at_once=None):
        if config not in compiled:
            compiled[config] = compile_epoch(state, visible, config, at_once)
        return compiled[config]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(app_runs, "load_dataset", lambda *_: data)
        patched.setattr(train, "compile_epoch", compile_once)
        patched.setattr(generation, "compared_samplers", lambda sampler: [sampler, generation.Sampler("prior", 1, 1)])
        patched.setattr(generation, "parzen_scores", score)
        for name in ("tiles", "curves", "histograms", "lines"):
            patched.setattr(figures, name, draw_digest)
        patched.setattr(figures, "save", lambda path, digest: path.write_text(digest))
        patched.setattr(compare, "compare_with_data", compare_digests)
        initial = config_of("run").recipe().initial_state(0, 784)
        held = jax.tree.map(np.asarray, dataclasses.replace(initial, key=jax.random.key_data(initial.key)))

        def initial_state(recipe, seed, num_visible, means=None, variances=None, unit=None):
            state = jax.tree.map(jnp.asarray, held)
            return dataclasses.replace(state, key=jax.random.wrap_key_data(state.key))

        patched.setattr(Recipe, "initial_state", initial_state)
        yield


def config_of(folder):
    return mnist_dbm.Config(**SETTINGS, workdir=str(folder))


@pytest.fixture(scope="module")
def runs(reduced, tmp_path_factory):
    """A finished run, and one that was interrupted in its last epoch but one, with two checkpoints."""
    parent = tmp_path_factory.mktemp("campaign")
    mnist_dbm.run(config_of(parent / "finished"))
    append = MetricsFile.append

    def fail_at_the_end(self, row):
        append(self, row)
        if row["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MetricsFile, "append", fail_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            mnist_dbm.run(config_of(parent / "half"))
    assert sorted(p.name for p in (parent / "half" / "checkpoints").iterdir()) == ["2", "3"]
    return parent


def outcome(folder):
    """What a run has arrived at: the bits of its parameters, its table, and its summary without timings."""
    summary = json.loads((folder / "summary.json").read_text())
    stack = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(vpf_jax.load_stack(folder))]
    rest = {name: value for name, value in summary.items() if name not in TIMINGS}
    return stack, (folder / "metrics.csv").read_bytes(), rest


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def start(folder, damaged, caplog):
    """'refused' in one sentence that names the file, 'right' if it arrives where it should; else what went wrong."""
    caplog.clear()
    try:
        mnist_dbm.run(config_of(folder))
    except Exception as error:
        found = cli.failure(error)
        if found is None:
            return f"{type(error).__name__}: {error}"
        status, sentence = found
        good = status in (1, 2) and len(sentence.splitlines()) == 1 and damaged.name in sentence
        return "refused" if good else sentence
    return "right"


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", ["finished", "half"])
def test_each_file_damaged_ends_in_a_sentence_or_in_the_same_bits(runs, tmp_path, kind, how, caplog):
    expected, before = outcome(runs / "finished"), stack_of_the_one_before(runs, tmp_path)
    wrong = []
    for number, file in enumerate(files_of(runs / kind)):
        folder = tmp_path / str(number)
        shutil.copytree(runs / kind, folder)
        if DAMAGES[how] is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(DAMAGES[how]((folder / file).read_bytes()))
        told = start(folder, file, caplog)
        found = None
        try:
            found = outcome(folder) if told == "right" else None
        # Of a finished run nobody has read the checkpoint yet; one without its record is refused.
        except CheckpointError as error:
            told = "refused" if f"{file.parent} without {file.name}" in str(error) else str(error)
        if found is not None:
            # A finished run's summary stands; who reads its newest checkpoint is told, and gets the one before.
            fallen_back = file.parts[:2] == ("checkpoints", "4") and found[0] == before
            if found[1:] != expected[1:] or not (found[0] == expected[0] or fallen_back):
                told = "another outcome"
            elif must_be_said(kind, file, how) and not re.search(
                rf"{told_of(file)}.* is (damaged|missing)", caplog.text
            ):
                told = "not a word"
        COUNTS[told if told in ("right", "refused") else "wrong"] += 1
        COUNTS["tried"] += 1
        if told not in ("right", "refused"):
            wrong.append(f"{file}: {told}")
        shutil.rmtree(folder)
    assert not wrong


def must_be_said(kind, file, how):
    """Of the newest checkpoint, and of what a finished run consists of; a lost list of these is made again quietly."""
    if file.parts[0] == "checkpoints":
        return file.parts[1] == {"finished": "4", "half": "3"}[kind]
    return kind == "finished" and file.name != ".lock" and (file.name, how) != ("files.sha256", "deleted")


def told_of(file):
    return f"checkpoint {file.parts[1]} in " if file.parts[0] == "checkpoints" else re.escape(file.name)


def stack_of_the_one_before(runs, tmp_path):
    folder = tmp_path / "before"
    shutil.copytree(runs / "finished", folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    return outcome(folder)[0]


@pytest.mark.slow
def test_all_checkpoints_damaged_is_refused_at_every_start(runs, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(runs / "half", folder)
    for file in (folder / "checkpoints").rglob("record.json"):
        file.write_bytes(file.read_bytes()[:-20])
    for _ in range(2):
        assert start(folder, Path("checkpoints"), caplog) == "refused"


@pytest.mark.slow
def test_a_copied_checkpoint_does_not_train_without_end(runs, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(runs / "half", folder)
    shutil.copytree(folder / "checkpoints" / "3", folder / "checkpoints" / "999")
    assert start(folder, Path("999"), caplog) == "right"
    assert "checkpoint 999" in caplog.text
    assert outcome(folder) == outcome(runs / "finished")


@pytest.mark.slow
def test_damaged_arrays_of_glasses_and_fits_are_said_and_made_again(tmp_path, caplog):
    sizes = {"size": 3, "sample_sizes": (50, 200), "num_seeds": 2, "sampler_chains": 100, "sampler_burn_in": 20}
    pcd = {"temperatures": 3, "pcd_chains": 20, "pcd_steps": 30}
    folder = tmp_path / "run"
    config = ising_recovery.Config(**sizes, **pcd, workdir=str(folder))

    def outcome():
        summary = ising_recovery.run(config)
        return summary | {"rows": [row | {"seconds": None} for row in summary["rows"]]}

    expected = outcome()
    # As a run that has stopped before its end, whose files nobody has listed.
    for name in ("summary.json", "files.sha256"):
        (folder / name).unlink()
    files = sorted(folder.rglob("*.npz"))
    # Each in another way.
    ways = [how for how in DAMAGES if how not in ("[]", "null")]
    for path, how in zip(files, ways, strict=True):
        if DAMAGES[how] is None:
            path.unlink()
        else:
            path.write_bytes(DAMAGES[how](path.read_bytes()))
    assert outcome() == expected
    for path, how in zip(files, ways, strict=True):
        told = f"{path} is damaged, and is now {path.name}.damaged; it is made again" in caplog.text
        # On some bits of an archive, such as those of its times, nothing depends.
        assert told or "bit" in how or DAMAGES[how] is None
        assert path.with_name(f"{path.name}.damaged").exists() == told


@pytest.mark.slow
def test_the_campaign_is_counted(runs, capsys):
    """Runs last; alone it has nothing to count."""
    if not COUNTS:
        pytest.skip("nothing was tried")
    told = ", ".join(f"{name} {COUNTS[name]}" for name in ("tried", "refused", "right", "wrong"))
    with capsys.disabled():
        print(f"\ndamage campaign: {told}")
    assert COUNTS["wrong"] == 0
    assert COUNTS["right"] + COUNTS["refused"] == COUNTS["tried"]
