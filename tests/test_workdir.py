"""The folder of a run: configurations that agree or not, metrics cut back on resuming, requests to stop."""

import json
import os
import signal

import pytest

from experiments.workdir import MetricsFile, UsageError, open_workdir, read_json, stop_requests, write_json


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
    with pytest.raises(UsageError, match="is a file"):
        open_workdir(tmp_path / "file", {})
    with pytest.raises(UsageError, match="holds files that are no run"):
        open_workdir(tmp_path, {})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        open_workdir(tmp_path / "run", {})
    assert (tmp_path / "file").read_text() == "mine"


def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "s.json", {"a": 1})
    write_json(tmp_path / "s.json", {"a": 2})
    assert read_json(tmp_path / "s.json") == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
    assert read_json(tmp_path / "none.json") is None


def test_metrics_are_cut_back_to_the_checkpoint_and_go_on(tmp_path):
    path = tmp_path / "metrics.csv"
    straight = MetricsFile(path, ("a", "b"), 0)
    for epoch in range(1, 5):
        straight.append({"epoch": epoch, "a": epoch / 3} | ({"b": 0.1} if epoch == 2 else {}))
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write("5,1.2")
    resumed = MetricsFile(path, ("a", "b"), 2)
    assert [row["epoch"] for row in resumed.rows] == [1, 2]
    for epoch in (3, 4):
        resumed.append({"epoch": epoch, "a": epoch / 3})
    assert path.read_bytes() == whole
    assert resumed.column("b") == ([2], [0.1])
    assert resumed.column("a")[0] == [1, 2, 3, 4]


def test_undeclared_columns_are_refused(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv", ("a",), 0)
    with pytest.raises(ValueError, match=r"\['c'\]; declared are \('epoch', 'a'\)"):
        metrics.append({"epoch": 1, "c": 0.0})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_noted_and_the_usual_handlers_come_back(number):
    usual = signal.getsignal(number)
    with stop_requests() as stops:
        assert stops == []
        os.kill(os.getpid(), number)
        assert stops == [number]
        assert signal.getsignal(number) is usual
    assert signal.getsignal(number) is usual


def test_a_setting_that_an_earlier_version_does_not_know_stands_at_its_default(tmp_path):
    folder = open_workdir(tmp_path / "run", {"epochs": 3, "layers": (4, 2)})
    assert open_workdir(folder, {"epochs": 3, "layers": (4, 2), "rule": "vpf"}, defaults={"rule": "vpf"}) == folder
    # From then on the folder knows it.
    with pytest.raises(UsageError, match="--rule=vpf, but --rule=cd was given"):
        open_workdir(folder, {"epochs": 3, "layers": (4, 2), "rule": "cd"}, defaults={"rule": "vpf"})
