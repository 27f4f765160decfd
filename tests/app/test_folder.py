"""The folder of a run: configurations that agree or not, locks, damage, metrics, growth, requests to stop."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from vpf_jax.app import command as cli
from vpf_jax.app import folder as workdir
from vpf_jax.app.folder import (
    Growth,
    MetricsFile,
    Stopped,
    UsageError,
    kept_arrays,
    locked,
    open_workdir,
    read_json,
    run_once,
    stop_requests,
    write_arrays,
    write_json,
)
from vpf_jax.checkpoint import CheckpointMismatchError
from vpf_jax.checks import SettingError
from vpf_jax.train import NonFiniteObjectiveError

ROOT = Path(__file__).parents[2]


def test_a_folder_is_made_and_opened_again_with_the_same_configuration(tmp_path):
    config = {"rate": 0.1, "hidden": [3, 2], "data_dir": None}
    path = open_workdir(tmp_path / "a" / "b", config)
    assert json.loads((path / "config.json").read_text()) == config
    assert open_workdir(path, config) == path
    open_workdir(path, config | {"data_dir": "elsewhere"}, free=("data_dir",))


def test_another_configuration_is_refused_and_named(tmp_path):
    open_workdir(tmp_path / "run", {"rate": 0.1, "seed": 0})
    with pytest.raises(UsageError, match=r"holds a run with --rate=0.1, but --rate=0.2 was given"):
        open_workdir(tmp_path / "run", {"rate": 0.2, "seed": 0})
    with pytest.raises(UsageError, match="--seed=0"):
        open_workdir(tmp_path / "run", {"rate": 0.1})
    assert read_json(tmp_path / "run" / "config.json") == {"rate": 0.1, "seed": 0}


def test_folders_that_are_no_run_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingError, match=r"got workdir=.*file'; it takes a folder, which may be missing"):
        open_workdir(tmp_path / "file", {})
    with pytest.raises(SettingError, match=r"this one holds files and no config\.json"):
        open_workdir(tmp_path, {})
    (tmp_path / "run").mkdir()
    for text in ("{", "{}", "[]", "null", "", "[" * 100_000):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(UsageError, match=r"run/config.json cannot be read as JSON that holds settings; put back"):
            open_workdir(tmp_path / "run", {})
    (tmp_path / "killed").mkdir()
    for name in (".lock", ".lock-holder", ".config.json.partial"):
        (tmp_path / "killed" / name).write_text("")
    open_workdir(tmp_path / "killed", {"a": 1})
    assert (tmp_path / "file").read_text() == "mine"


def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "s.json", {"a": 1})
    write_json(tmp_path / "s.json", {"a": 2})
    assert read_json(tmp_path / "s.json") == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
    assert read_json(tmp_path / "none.json") is None


def rows_of(epochs):
    return [{"epoch": epoch, "a": epoch / 3} | ({"b": 0.1} if epoch == 2 else {}) for epoch in epochs]


def test_metrics_are_written_from_what_the_checkpoint_keeps_and_go_on(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    straight = MetricsFile(path, ("a", "b"), [])
    for row in rows_of(range(1, 5)):
        straight.append(row)
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write("5,1.2")
    # As JSON gives them back.
    kept = json.loads(json.dumps(rows_of((1, 2))))
    resumed = MetricsFile(path, ("a", "b"), kept)
    for row in rows_of((3, 4)):
        resumed.append(row)
    assert path.read_bytes() == whole
    assert not caplog.text
    path.unlink()
    MetricsFile(path, ("a", "b"), rows_of((1, 2, 3, 4)))
    assert path.read_bytes() == whole


def test_a_damaged_metrics_file_is_put_aside_and_made_again(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    path.write_text("mine")
    MetricsFile(path, ("a", "b"), rows_of((1, 2)))
    assert "metrics.csv does not begin with what the checkpoint keeps, and is now metrics.csv.damaged" in caplog.text
    assert (tmp_path / "metrics.csv.damaged").read_text() == "mine"
    assert path.read_text().splitlines() == ["epoch,a,b", "1,0.3333333333333333,", "2,0.6666666666666666,0.1"]


def test_undeclared_columns_are_refused(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv", ("a",), [])
    with pytest.raises(ValueError, match=r"\['c'\]; declared are \('epoch', 'a'\)"):
        metrics.append({"epoch": 1, "c": 0.0})


CONFIG = {"rate": 0.1, "epochs": 3}


def finish(folder, config=CONFIG, grows=types.MappingProxyType({})):
    """A run that writes a table and says how often it has worked."""

    def work(path):
        (path / "table.md").write_text(f"{config['epochs']} epochs")
        worked.append(path)
        return {"epochs": config["epochs"]}

    worked = []
    summary = run_once(folder, config, work, grows=grows)
    return summary, len(worked)


def test_a_finished_run_is_not_run_again_nor_written_to(tmp_path, capsys):
    folder = tmp_path / "run"
    assert finish(folder) == ({"epochs": 3}, 1)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path.name for path in before} == {"config.json", "table.md", "summary.json", "files.sha256", ".lock"}
    assert finish(folder) == ({"epochs": 3}, 0)
    assert "finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    subprocess.run(["sha256sum", "--check", "--strict", "files.sha256"], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["config.json", "table.md", "summary.json", "files.sha256"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", None])
def test_damage_of_a_finished_run_is_said_put_aside_and_mended(tmp_path, name, content, caplog):
    folder = tmp_path / "run"
    finish(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    if name == "config.json":
        with pytest.raises((UsageError, SettingError), match=r"config\.json"):
            finish(folder)
        return
    # Without a manifest the run was killed at the very end.
    assert finish(folder) == ({"epochs": 3}, int(name != "files.sha256" or content is not None))
    assert before.items() <= {path.name: path.read_bytes() for path in folder.iterdir()}.items()
    if content is None:
        assert (f"{name} is missing; it is made again" in caplog.text) == (name != "files.sha256")
    else:
        assert f"{name} is damaged, and is now {name}.damaged; it is made again" in caplog.text
        assert (folder / f"{name}.damaged").read_bytes() == content


def test_a_number_of_epochs_may_grow_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    grows = {"epochs": Growth(default=5)}
    finish(folder)
    with pytest.raises(UsageError, match="--epochs=3, but --epochs=4"):
        finish(folder, CONFIG | {"epochs": 4})
    with pytest.raises(UsageError, match=r"--epochs=3, but --epochs=4 was given \(it is short\); give"):
        finish(folder, CONFIG | {"epochs": 4}, {"epochs": Growth(refused="it is short")})
    assert finish(folder, CONFIG | {"epochs": 4}, grows) == ({"epochs": 4}, 1)
    assert (folder / "table.md").read_text() == "4 epochs"
    with pytest.raises(UsageError, match="--epochs=4, but --epochs=3"):
        finish(folder, CONFIG, grows)
    # 0 stands for 5.
    assert finish(folder, CONFIG | {"epochs": 0}, grows) == ({"epochs": 0}, 1)
    assert finish(folder, CONFIG | {"epochs": 5}, grows) == ({"epochs": 0}, 0)


@pytest.mark.parametrize("killed_after", range(1, 5))
def test_a_kill_while_a_run_is_opened_again_leaves_one_that_goes_on(tmp_path, monkeypatch, killed_after):
    """After each write or removal on the way from a finished run to a longer one."""
    folder, longer, grows = tmp_path / "run", CONFIG | {"epochs": 4}, {"epochs": Growth()}
    finish(folder)
    left = [killed_after]

    def counting(function):
        def counted(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(type(folder), "unlink", counting(type(folder).unlink))
    monkeypatch.setattr(workdir.os, "replace", counting(os.replace))
    with pytest.raises(KeyboardInterrupt):
        finish(folder, longer, grows)
    monkeypatch.undo()
    held = json.loads((folder / "config.json").read_text())["epochs"]
    if held == 3:
        assert finish(folder)[0] == {"epochs": 3}
    assert finish(folder, longer, grows)[0] == {"epochs": 4}
    assert (folder / "table.md").read_text() == "4 epochs"


HOLDING = """
import sys, pathlib
from vpf_jax.app.folder import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_another_process_in_the_folder_is_named_and_its_death_frees_it(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(UsageError, match=rf"in use by process {process.pid} on \S+ since 20\S+; wait for its end"):
            finish(folder)
        assert before == sorted(path.name for path in folder.iterdir()) == [".lock", ".lock-holder"]
    finally:
        process.kill()
        process.communicate()
    assert finish(folder) == ({"epochs": 3}, 1)
    assert not (folder / ".lock-holder").exists()


def test_another_thread_is_refused_and_the_same_one_goes_in_twice(tmp_path):
    refused = []

    def other():
        try:
            with locked(tmp_path):
                pass
        except UsageError as error:
            refused.append(str(error))

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"process {os.getpid()}" in refused[0]
    with locked(tmp_path):
        pass


def test_a_thread_handles_no_signals():
    found = []

    def other():
        with stop_requests() as stops:
            found.append(stops)

    usual = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [[]]
    assert signal.getsignal(signal.SIGINT) is usual


def test_an_ignored_interrupt_stays_ignored(monkeypatch):
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as stops:
            os.kill(os.getpid(), signal.SIGINT)
            assert stops == []
    finally:
        signal.signal(signal.SIGINT, usual)


def test_a_write_that_fails_names_the_file(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workdir.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*summary.json") as caught:
        write_json(tmp_path / "summary.json", {})
    assert cli.failure(caught.value) == (
        1,
        f"{tmp_path / 'summary.json'}: No space left on device; what was saved stays, start again to resume when this "
        "is mended",
    )


def test_what_a_command_ends_with_is_told_from_bugs():
    assert cli.failure(UsageError("no"))[0] == 2
    assert cli.failure(SettingError("hidden", (4, 0), "2 integers")) == (2, "got --hidden=4,0; it takes 2 integers")
    assert cli.failure(SettingError("hidden_flips", False, "on")) == (2, "got --hidden_flips=off; it takes on")
    assert cli.failure(CheckpointMismatchError("no"))[0] == 2
    assert cli.failure(NonFiniteObjectiveError("no"))[0] == 1
    assert cli.failure(Stopped(15, "saved"))[0] == 143
    assert cli.failure(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert cli.failure(ValueError("a bug")) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_noted_and_the_usual_handlers_come_back(number):
    usual = signal.getsignal(number)
    with stop_requests() as stops:
        assert stops == []
        os.kill(os.getpid(), number)
        assert stops == [number]
        assert signal.getsignal(number) is usual
    assert signal.getsignal(number) is usual


def test_arrays_are_kept_until_they_are_damaged(tmp_path, caplog):
    path = tmp_path / "fits" / "one.npz"
    assert kept_arrays(path) is None
    write_arrays(path, a=np.arange(3), b=np.float32(2))
    found = kept_arrays(path)
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
    assert found["b"] == 2
    path.write_bytes(path.read_bytes()[:-30])
    assert kept_arrays(path) is None
    assert "one.npz is damaged, and is now one.npz.damaged; it is made again" in caplog.text
    assert not path.exists()
