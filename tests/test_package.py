"""The package as users get it: the wheel, its commands in a clean environment, import time, the README's example."""

import importlib.metadata
import itertools
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from quick_compile import VARIABLES

import vpf_jax

ROOT = Path(__file__).parent.parent


def run(*command, cwd, quick=False, **kwargs):
    """The command as users have it; or `quick`, with what makes small programs compile fast."""
    # Nothing of this checkout may leak into the clean environment.
    left_out = "PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", *(() if quick else VARIABLES)
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    return subprocess.run(
        command, cwd=cwd, env=environment, check=True, capture_output=True, text=True, timeout=900, **kwargs
    )


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tracked sources so that no build folder appears in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "vpf_jax", source / "vpf_jax", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(source / "dist"), cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vpf_jax"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "vpf_jax").rglob("*.py")}
    assert {name for name in names if name.startswith("vpf_jax/") and name.endswith(".py")} == modules
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "vpf_jax/app/pages").iterdir()}
    assert {"vpf_jax/py.typed", *pages} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


OTHER_MODELS = """
from experiments import mnist_dbm

for model, hidden in (("rbm", (10,)), ("dbm", (10, 6))):
    settings = mnist_dbm.Config(
        dataset="digits_8x8", model=model, hidden=hidden, epochs=2, num_samples=50, workdir=model
    )
    mnist_dbm.run(settings)
"""


USERS_DATA = """
import numpy as np

rng = np.random.default_rng(0)
kind = rng.random((300, 1)) < 0.5
answers = (rng.random((300, 6)) < np.where(kind, 0.9, 0.1)).astype(float)
np.save("answers.npy", answers)
answers[:, 2] = np.nan
np.save("holes.npy", answers)
"""


def needed(requirements: Iterable[str]) -> Iterator[importlib.metadata.Distribution]:
    """What the requirements name, and what that requires in turn, of what is installed here."""
    to_do, seen = [Requirement(one) for one in requirements], set()
    while to_do:
        requirement = to_do.pop()
        wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if wanted in seen:
            continue
        seen.add(wanted)
        found = importlib.metadata.distribution(requirement.name)
        yield found
        to_do += applying(found.requires or (), requirement.extras)


def applying(requirements: Iterable[str], extras: Iterable[str]) -> list[Requirement]:
    """Those that hold on this machine, for these extras or without any."""
    parsed = map(Requirement, requirements)
    return [
        one for one in parsed if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in ("", *extras))
    ]


def install(wheel: Path, python: str, *extras: str) -> None:
    """The wheel by pip, which finds all that it requires, and no index: links to what is installed here.

    As much as a download of hundreds of megabytes shows of what the wheel declares: nothing else is in the environment.
    """
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=wheel.parent).stdout[:-1]
    )
    (described,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    declared = importlib.metadata.PathDistribution(described).requires
    for one in needed(map(str, applying(declared, extras))):
        for file in one.files:
            # What lies outside are commands of theirs.
            if ".." in file.parts or not one.locate_file(file).exists():
                continue
            link = site / file
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(one.locate_file(file))
    named = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    pip = sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"
    run(*pip, "--no-index", "--no-compile", named, cwd=wheel.parent)


@pytest.mark.slow
def test_every_command_runs_from_the_wheel_in_a_clean_environment(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = str(tmp_path / "env" / "bin" / "python")
    install(wheel, python)
    assert_a_users_file_is_enough(tmp_path / "user", python)
    install(wheel, python, "experiments")
    # A checkout has the experiments; the library comes from the wheel.
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    where = run(python, "-c", "import vpf_jax; print(vpf_jax.__file__)", cwd=tmp_path)
    assert str(tmp_path / "env") in where.stdout
    flags = ["--model=intra_dbm", "--hidden=10,6", "--epochs=2", "--num_samples=50", "--workdir=intra_dbm"]
    run(python, "-W", "error", "-m", "experiments.mnist_dbm", *flags, cwd=tmp_path)
    run(python, "-W", "error", "-c", OTHER_MODELS, cwd=tmp_path, quick=True)
    for model in ("rbm", "dbm", "intra_dbm"):
        assert (tmp_path / model / "summary.json").exists()
    for program in readme_blocks("python"):
        run(python, "-W", "error", "-c", program, cwd=tmp_path, quick=True)
    script = tmp_path / "script"
    script.mkdir()
    assert_types_are_seen(script, "--python-executable", python, cwd=script)


def assert_a_users_file_is_enough(folder, python):
    """The wheel alone, in an empty folder: commands on an .npy file, and the model for whoever reads it."""
    folder.mkdir()
    run(python, "-c", USERS_DATA, cwd=folder)
    vpf = str(Path(python).with_name("vpf"))
    settings = ["--model=rbm", "--hidden=3", "--epochs=2", "--batch_size=20", "--num_samples=50", "--workdir=run"]
    run(python, "-W", "error", "-m", "vpf_jax", "train", "--dataset=answers.npy", *settings, cwd=folder, quick=True)
    run(vpf, "sample", "run", "--number=7", "--steps=5", cwd=folder, quick=True)
    run(vpf, "score", "run/model.safetensors", "answers.npy", cwd=folder, quick=True)
    run(vpf, "repair", "run", "holes.npy", "--steps=5", cwd=folder, quick=True)
    run(vpf, "features", "run", "answers.npy", "--out=features.csv", cwd=folder, quick=True)
    told = run(vpf, "inspect", "run", cwd=folder).stdout
    assert "machine 0: 6 - 3 binary units" in told
    for name, lines in (("scores.csv", 301), ("features.csv", 301)):
        assert (folder / name).read_text().count("\n") == lines
    assert {path.name for path in folder.glob("*.npy")} == {"answers.npy", "holes.npy", "samples.npy", "repaired.npy"}
    loaded = run(python, "-c", "import vpf_jax; print(vpf_jax.load_model('run/model.safetensors').about)", cwd=folder)
    assert "answers.npy" in loaded.stdout


@pytest.mark.slow
def test_the_readme_example_runs_and_learns():
    program = readme_blocks("python")[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 16
    names: dict = {}
    exec(textwrap.dedent(program), names)
    first, last = names["objectives"][0], names["objectives"][-1]
    assert last < 0.7 * first


def test_the_oldest_versions_that_are_tried_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Left out are the peers of the benchmarks and what builds the documentation: `make oldest` does without.
    extras = [project["optional-dependencies"][extra] for extra in ("experiments", "tfds", "dev")]
    bounds = {}
    for requirement in map(Requirement, itertools.chain(project["dependencies"], *extras)):
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        bounds[requirement.name] = Version(bound.version)
    tried = {}
    for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            tried[name] = Version(version)
    assert tried == bounds


@pytest.mark.slow
def test_importing_loads_neither_files_nor_pictures_nor_data():
    # What takes long to import and is not needed to compose the pure functions.
    program = "import sys, vpf_jax; print(*sys.modules)"
    loaded = set(run(sys.executable, "-c", program, cwd=ROOT).stdout.split())
    assert loaded.isdisjoint(
        {"orbax", "optax", "matplotlib", "tensorflow", "tensorflow_datasets", "mlxtend", "sklearn"}
    )


@pytest.mark.slow
def test_submodules_are_reached_without_importing_them_by_name():
    program = (
        "import sys, vpf_jax; before = set(sys.modules); assert 'vpf_jax.train' not in before;"
        "print(vpf_jax.train.TrainConfig().rule.name, list(vpf_jax.data.SOURCES)[0], vpf_jax.checkpoint.KEPT,"
        " vpf_jax.figures.tiles.__name__, {'train', 'figures'} <= set(dir(vpf_jax)))"
    )
    assert run(sys.executable, "-c", program, cwd=ROOT).stdout.split() == ["vpf", "digits_8x8", "2", "tiles", "True"]
    with pytest.raises(AttributeError, match="module 'vpf_jax' has no attribute 'trian'"):
        vpf_jax.trian  # noqa: B018


USER_SCRIPT = """
import jax
import jax.numpy as jnp
import vpf_jax
from vpf_jax.train import TrainConfig, init_state, train_epoch

machine_key, train_key, sum_key = jax.random.split(jax.random.key(0), 3)
machine = vpf_jax.init_machine(machine_key, (6, 4))
config = TrainConfig(batch_size=2)
state = init_state(train_key, (machine,), config)
state, metrics = train_epoch(state, jnp.zeros((4, 6), jnp.uint8), config=config)
(learnt,) = state.stack
gradient = vpf_jax.local_gradient(learnt, (jnp.zeros((4, 6)), jnp.zeros((4, 4))))
estimate = vpf_jax.ais_log_partition(sum_key, learnt, num_chains=100, num_temperatures=50)
steepest = max(float(jnp.max(jnp.abs(block))) for block in gradient.biases)
"""


def assert_types_are_seen(folder, *options, **where):
    """By mypy, strictly, in a user's script; and what is wrong in another one."""
    script = folder / "script.py"
    script.write_text(USER_SCRIPT)
    checker = sys.executable, "-m", "mypy", "--strict", *options, str(script)
    assert "Success" in run(*checker, **where).stdout
    script.write_text(f"{USER_SCRIPT}reveal_type(state)\nreveal_type(metrics)\nreveal_type(gradient)\n")
    told = run(*checker, **where).stdout
    for name in ("train.TrainState", "train.Metrics", "machine.BoltzmannMachine"):
        assert f'Revealed type is "vpf_jax.{name}"' in told
    script.write_text(f'{USER_SCRIPT}vpf_jax.init_machine(machine_key, "6, 4")\nvpf_jax.energy(state, machine)\n')
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        run(*checker, **where)
    assert refusal.value.stdout.count("error: Argument") == 3
