"""The launch files of experiments/launch: what they say, and local.sh and slurm.sh run, with processes of this machine.

SLURM and Google's cloud are stood in for by small programs of the same names, first on the path.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from programs import start_here

from vpf_jax.app import training
from vpf_jax.settings import options

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "experiments" / "launch"
SHELL = sorted(path.name for path in LAUNCH.glob("*.sh"))
TRAINED = ["--hidden=4", "--batch_size=20", "--evaluate_every=0", "--num_samples=20", "--checkpoint_every=2"]
PATIENCE = 120
# Of the objectives of one process and of several, which add in another order.
ROUNDING = 1e-5

# What ends by SIGTERM as a run does that has saved.
ENDLESS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
print("begun", file=open("begun", "a"))
time.sleep(60)
"""
SRUN = """
import os, signal, subprocess, sys
print("srun", *sys.argv[1:], file=open(os.environ["TOLD"], "a"))
command = [word for word in sys.argv[1:] if not word.startswith("--kill")]
count = os.environ["SLURM_NTASKS"]
of_all = {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_NODES": "1"}
own = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(int(count))]
tasks = [subprocess.Popen(command, env=os.environ | of_all | one) for one in own]
signal.signal(signal.SIGTERM, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max(status if status >= 0 else 128 - status for status in [task.wait() for task in tasks]))
"""
SCONTROL = """
import os, sys
print("scontrol", *sys.argv[1:], file=open(os.environ["TOLD"], "a"))
if sys.argv[1] == "show":
    print("JobId=1 JobName=vpf JobState=" + os.environ["STATE"] + " Reason=None")
"""
# A slice that is preempted while the first training goes on.
GCLOUD = """
import os, pathlib, sys
told, state = pathlib.Path(os.environ["TOLD"]), pathlib.Path(os.environ["TOLD"] + ".state")
words = [word for word in sys.argv[1:] if not word.startswith("--")]
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
before = told.read_text() if told.exists() else ""
with told.open("a") as file:
    print("gcloud", *sys.argv[1:], file=file)
if "describe" in words:
    sys.exit(print(state.read_text()) if state.exists() else 1)
if "create" in words:
    state.write_text("ACTIVE")
if "delete" in words:
    state.unlink()
if "ssh" in words and "vpf_jax train" in given["command"] and "vpf_jax train" not in before:
    state.write_text("SUSPENDED")
    sys.exit(255)
"""


def stand_in(folder, **programs):
    """Programs by these names, the folder that holds them, and the file in which they write how they were called."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "TOLD": str(folder / "told")}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin(file, *arguments, cwd=ROOT, **environment):
    """A launch file as a process."""
    environment = os.environ | {"PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "1"} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([LAUNCH / file, *map(str, arguments)], cwd=cwd, env=environment, **pipes)


def end(process):
    """Status, output and errors."""
    output, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, output, errors


def wait_for(file, text):
    for _ in range(10 * PATIENCE):
        if file.exists() and text in file.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} has no {text!r}")


def objectives(folder):
    return np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True)["objective"]


def train(trained, folder, epochs):
    """What follows `python -m`."""
    return ["vpf_jax", "train", *trained, f"--epochs={epochs}", f"--workdir={folder}"]


def assert_flags_are_taken(words):
    """The program's own settings take these flags together."""
    known = {option.flag: option for option in options(training.Config).values()}
    given = {}
    for flag, text in (word.removeprefix("--").split("=", 1) for word in words):
        given[known[flag].name] = known[flag].read(text)
    return training.Config(**given)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Flags of a small training."""
    file = tmp_path_factory.mktemp("data") / "bits.npy"
    np.save(file, np.random.default_rng(0).integers(0, 2, (200, 6)))
    return [f"--dataset={file}", *TRAINED]


@pytest.fixture(scope="module")
def single(trained, tmp_path_factory):
    """The objectives of one process."""
    folder = tmp_path_factory.mktemp("single") / "run"
    program, command, *flags = train(trained, folder, 4)
    assert start_here(f"{program} {command}", *flags)[::2] == (0, "")
    return objectives(folder)


@pytest.mark.parametrize("name", SHELL)
def test_shell_files_are_shell_and_can_be_started(name):
    assert SHELL == ["cloud_tpu.sh", "local.sh", "slurm.sh"]
    file = LAUNCH / name
    subprocess.run(["bash", "-n", file], check=True)
    assert os.access(file, os.X_OK)
    text = file.read_text()
    assert "\nset -euo pipefail\n" in text
    assert max(map(len, text.splitlines())) <= 120


def slurm_settings():
    lines = re.findall(r"^#SBATCH (.*)$", (LAUNCH / "slurm.sh").read_text(), flags=re.MULTILINE)
    return {name: value for name, _, value in (line.removeprefix("--").partition("=") for line in lines)}


def test_what_slurm_is_asked_for():
    found = slurm_settings()
    assert {"job-name", "output", "time", "nodes", "cpus-per-task", "mem"} <= set(found)
    # JAX gives each task the device of its number.
    assert found["ntasks-per-node"] == found["gpus-per-node"]
    assert "gpus-per-task" not in found
    assert found["signal"].startswith("B:USR1@")
    assert found["requeue"] == ""
    # sbatch reads no further than the first command.
    text = (LAUNCH / "slurm.sh").read_text()
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")


def test_the_set_of_jobs_is_one_run():
    documents = {document["kind"]: document for document in yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())}
    account, role, binding, jobs = (documents[kind] for kind in ("ServiceAccount", "Role", "RoleBinding", "JobSet"))
    name = account["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    # What JAX asks of the cluster.
    assert {("pods", "list"), ("jobs", "get")} <= allowed
    assert jobs["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    # JAX reaches the first pod under the set's own name.
    assert jobs["spec"]["network"]["enableDNSHostnames"]
    assert "subdomain" not in jobs["spec"]["network"]
    (group,) = jobs["spec"]["replicatedJobs"]
    job, pod = group["template"]["spec"], group["template"]["spec"]["template"]["spec"]
    assert group["replicas"] == 1
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    assert pod["serviceAccountName"] == name
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "vpf_jax", "train"]
    config = assert_flags_are_taken(container["args"])
    assert (config.coordinator, config.mesh) == ("auto", "auto")
    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert volume["name"] == mount["name"]
    for path in (config.dataset, config.workdir, container["env"][0]["value"]):
        assert path.startswith(f"{mount['mountPath']}/")
    _, stopped = job["podFailurePolicy"]["rules"]
    assert stopped["onExitCodes"]["values"] == [128 + signal.SIGTERM]
    assert stopped["onExitCodes"]["containerName"] == container["name"]
    (rule,) = jobs["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    # What the comment offers in place of the role.
    explicit = re.search(r"^# +(--coordinator=vpf.*)$", (LAUNCH / "jobset.yaml").read_text(), flags=re.MULTILINE)[1]
    flags = explicit.replace("$(JOB_COMPLETION_INDEX)", "1").split()
    config = assert_flags_are_taken([*flags, "--dataset=mnist_5k", "--mesh=auto"])
    assert config.processes == job["completions"]
    host = f"{jobs['metadata']['name']}-{group['name']}-0-0.{jobs['metadata']['name']}"
    assert config.coordinator.startswith(f"{host}:")


def test_a_slice_that_is_preempted_is_asked_for_again(tmp_path):
    environment = stand_in(tmp_path / "bin", gcloud=GCLOUD, sleep="")
    status, _, errors = end(begin("cloud_tpu.sh", "--dataset=data/a b.npy", "--epochs=4", **environment))
    assert status == 0, errors
    told = (tmp_path / "bin" / "told").read_text().splitlines()
    verbs = [re.search(r" (create|delete|ssh) ", line) for line in told]
    assert [verb[1] for verb in verbs if verb and verb[1] != "ssh"] == ["create", "delete", "create", "delete"]
    assert all("--spot" in line for line in told if " create " in line)
    trainings = [line for line in told if "vpf_jax train" in line]
    assert len(trainings) == 2
    assert all("--worker=all" in line for line in trainings)
    # Fetched before each training, and kept after it.
    assert sum("rsync --recursive gs://BUCKET/vpf/runs/vpf runs/vpf" in line for line in told) == 2
    assert any("rsync --recursive runs/vpf gs://BUCKET/vpf/runs/vpf" in line for line in told)
    command = shlex.split(trainings[-1].partition("--command=")[2])
    config = assert_flags_are_taken(command[command.index("train") + 1 :])
    assert (config.coordinator, config.mesh, config.epochs) == ("auto", "auto", 4)
    assert config.dataset == "data/a b.npy"


def test_what_fails_on_a_slice_that_is_there_is_said_and_the_slice_given_back(tmp_path):
    gcloud = GCLOUD.replace('state.write_text("SUSPENDED")', "pass")
    environment = stand_in(tmp_path / "bin", gcloud=gcloud, sleep="")
    status, _, errors = end(begin("cloud_tpu.sh", "--dataset=data/a.npy", **environment))
    assert status == 255
    assert "the training has failed" in errors
    assert not (tmp_path / "bin" / "told.state").exists()


@pytest.mark.parametrize("given", [(), ("two", "vpf_jax"), ("0", "vpf_jax"), ("2",)])
def test_processes_are_counted(given):
    status, _, errors = end(begin("local.sh", *given))
    assert status == 2
    assert errors.startswith("usage: ")


@pytest.mark.slow
def test_processes_of_one_machine_are_one_run(trained, single, tmp_path):
    folder = tmp_path / "run"
    # Each reads its rows of the examples from disk.
    status, output, errors = end(begin("local.sh", 2, *train(trained, folder, 4), "--stream=on"))
    assert (status, errors) == (0, "")
    for number in range(2):
        assert f"process {number} of 2: 1 of 2 devices (cpu)" in output
    np.testing.assert_allclose(objectives(folder), single, rtol=ROUNDING)


@pytest.mark.slow
def test_a_signal_saves_what_all_have_done(trained, single, tmp_path):
    folder = tmp_path / "run"
    process = begin("local.sh", 4, *train(trained, folder, 4000))
    wait_for(folder / "metrics.csv", "\n4,")
    process.send_signal(signal.SIGTERM)
    status, output, errors = end(process)
    assert status == 128 + signal.SIGTERM, errors
    assert "process 3 of 4: 1 of 4 devices (cpu)" in output
    assert errors.count("stopped by SIGTERM; epoch") == 4
    found = objectives(folder)
    assert (folder / "checkpoints" / str(len(found))).exists()
    np.testing.assert_allclose(found[:4], single, rtol=ROUNDING)


def test_one_that_fails_ends_all_with_its_status(tmp_path):
    # Killed before it joins: the others would wait for it.
    program = "import os, sys, time; '--process=1' in sys.argv and os.kill(os.getpid(), 9); time.sleep(60)"
    (tmp_path / "killed.py").write_text(program)
    began = time.monotonic()
    status, _, _ = end(begin("local.sh", 3, "killed", cwd=tmp_path))
    assert status == 128 + signal.SIGKILL
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_process_once(tmp_path, number):
    # Lines written whole: two processes share each of these files, and PYTHONUNBUFFERED cuts what `print` writes.
    program = (
        "import os, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda number, frame: os.write(1, b'received\\n'))\n"
        "os.write(os.open('begun', os.O_WRONLY | os.O_CREAT | os.O_APPEND), b'begun\\n')\n"
        "time.sleep(1.5)\n"
    )
    (tmp_path / "received.py").write_text(program)
    process = begin("local.sh", 2, "received", cwd=tmp_path)
    wait_for(tmp_path / "begun", "begun\nbegun\n")
    process.send_signal(number)
    assert end(process)[:2] == (0, "received\nreceived\n")


def slurm(folder, count, *flags, state="RUNNING", **environment):
    """slurm.sh as a job of so many tasks, whose first one listens on a port that is free."""
    environment |= stand_in(folder / "bin", srun=SRUN, scontrol=SCONTROL)
    environment |= {"SLURM_JOB_ID": "1", "SLURM_NTASKS": str(count), "STATE": state}
    environment |= {"JAX_COORDINATOR_PORT": str(free_port())}
    return begin("slurm.sh", *flags, **environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [2, pytest.param(4, marks=pytest.mark.skipif("VPF_DRILLS" not in os.environ, reason="VPF_DRILLS"))]
)
def test_tasks_of_slurm_are_one_run(trained, single, tmp_path, count):
    status, output, errors = end(slurm(tmp_path, count, *trained, "--epochs=4", f"--workdir={tmp_path / 'run'}"))
    assert (status, errors) == (0, "")
    assert f"process 1 of {count}: 1 of {count} devices (cpu)" in output
    np.testing.assert_allclose(objectives(tmp_path / "run"), single, rtol=ROUNDING)
    (told,) = (tmp_path / "bin" / "told").read_text().splitlines()
    words = told.split()
    assert words[0] == "srun"
    assert_flags_are_taken(words[words.index("train") + 1 :])


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("CANCELLED", False)])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_is_told_to_end_goes_back_into_the_queue(tmp_path, state, requeued, number):
    programs = stand_in(tmp_path / "programs", python=ENDLESS)["PATH"].partition(":")[0]
    process = slurm(tmp_path, 2, state=state, PYTHON=f"{programs}/python", cwd=tmp_path)
    wait_for(tmp_path / "begun", "begun\nbegun\n")
    process.send_signal(number)
    status, _, errors = end(process)
    assert status == 128 + signal.SIGTERM, errors
    assert ("scontrol requeue 1" in (tmp_path / "bin" / "told").read_text()) == requeued


def test_a_job_that_fails_does_not_go_back_into_the_queue(tmp_path):
    programs = stand_in(tmp_path / "programs", python="exit(1)")["PATH"].partition(":")[0]
    status, _, errors = end(slurm(tmp_path, 2, PYTHON=f"{programs}/python"))
    assert status == 1, errors
    assert "scontrol" not in (tmp_path / "bin" / "told").read_text()
