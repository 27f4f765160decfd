"""Pages of runs: what stands in them, when they are written, what they refuse, and how they look in a browser."""

import dataclasses
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import browser
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpf_jax import figures
from vpf_jax.app import folder as run_folder
from vpf_jax.app import follow, loop, report, runs
from vpf_jax.app.folder import Stopped, UsageError
from vpf_jax.app.tables import markdown_table
from vpf_jax.checks import SettingError
from vpf_jax.settings import setting

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Config(runs.TrainingConfig):
    """Settings of a run that trains two walks for a moment."""

    experiment = "walks"

    epochs: int = setting(6, "Epochs", least=1)
    size: float = setting(1.0, "Of a step", above=0)


def walks(config, *, during=lambda epoch: None, after=lambda folder: None):
    """A run with a training in its folder, one of three seeds in another, a picture at each evaluation, and a table."""

    def epoch(size):
        def run(state, epoch):
            key, step = jax.random.split(state["key"])
            x = state["x"] + size * jax.random.normal(step, state["x"].shape)
            return {"key": key, "x": x}, {"length": jnp.sum(x * x, axis=-1)}

        return [loop.Phase(config.epochs, lambda _: run)]

    def work(folder, stops):
        def measure(state, epoch):
            during(epoch)
            if epoch % 3:
                return {}
            picture = figures.tiles(np.full((28, 4, 4), epoch / 9), title=f"<b>walk</b> after {epoch}")
            figures.save(folder / "samples.png", picture)
            return {"evaluated": 10.0 * epoch}

        options = {"checkpoint_every": 2, "stops": stops, "columns": ("length", "evaluated")}
        one = {"key": jax.random.key(config.seed), "x": jnp.zeros(3)}
        first = loop.train(
            folder, one, epoch(config.size), measure=measure, evaluated=lambda epoch: epoch % 3 == 0, **options
        )
        three = {"key": jax.random.key(1), "x": jnp.zeros((3, 2))}
        options = {"checkpoint_every": 2, "stops": stops, "name": "several"}
        loop.train(folder / "models" / "several", three, epoch(2.0), **options)
        after(folder)
        found = {
            "length": first.rows[-1]["length"],
            "train_seconds": 1.5,
            "samplers": [{"start": "prior", "mean": 1.25, "inner": {}}, {"start": "uniform", "mean": -3.5}],
        }
        return found, "Said <i>before</i> it.\n\n" + markdown_table(["walk", "length"], [["a|b", "3.0 +- 0.1"]])

    return runs.carry_out(config, work)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folders of two finished runs."""
    parent = tmp_path_factory.mktemp("runs")
    walks(Config(workdir=str(parent / "short & small"), size=0.5))
    walks(Config(workdir=str(parent / "long"), epochs=9, tensorboard=True))
    return parent


def data_of(path):
    return json.loads(re.search(r'type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)[1])


@pytest.mark.slow
def test_a_finished_run_has_a_page_with_all_that_it_found(finished):
    folder = finished / "short & small"
    page = (folder / report.NAME).read_text()
    assert "<h1>short &amp; small</h1>" in page
    assert re.search(r"Finished, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", page)
    assert "walks --workdir=&#39;" in page
    assert "--size=0.5" in page
    assert "--seed" not in page
    for name, value in (("size", "0.5"), ("epochs", "6"), ("device", "cpu"), ("training", "1.5 s")):
        assert re.search(rf"<dt>{name}</dt><dd>{re.escape(value)}</dd>", page), name
    # The table, the samplers and the picture with its title; nothing that somebody else wrote is HTML.
    assert "<td>3.0 +- 0.1</td>" in page
    assert "<td>a|b</td>" in page
    assert "Said &lt;i&gt;before&lt;/i&gt; it." in page
    assert "<th>uniform</th><td>-3.5</td>" in page
    assert "&lt;b&gt;walk&lt;/b&gt; after 6" in page
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    curves = {chart["name"]: chart["curves"] for chart in data_of(folder / report.NAME)}
    assert [curve["name"] for curve in curves["length"]] == ["short & small", "several"]
    assert [curve["x"] for curve in curves["length"]] == [[1, 2, 3, 4, 5, 6]] * 2
    assert curves["evaluated"] == [{"name": "short & small", "x": [3, 6], "y": [30, 60]}]
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    np.testing.assert_allclose(curves["length"][0]["y"], [float(row.split(",")[1]) for row in rows], rtol=1e-5)


def test_the_page_belongs_to_the_run_and_is_made_again(finished, caplog):
    folder = finished / "long"
    config = Config(workdir=str(folder), epochs=9, tensorboard=True)
    assert report.NAME in run_folder.read_manifest(folder)
    page = folder / report.NAME
    for damage in (lambda: page.write_text("<html>"), page.unlink):
        damage()
        walks(config)
        assert "Finished" in page.read_text()
    assert "report.html is damaged" in caplog.text
    assert "report.html is missing" in caplog.text


def test_the_page_says_how_far_a_run_is(tmp_path):
    folder, seen = tmp_path / "run", {}

    def during(epoch):
        seen[epoch] = (folder / report.NAME).read_text()

    walks(Config(workdir=str(folder)), during=during)
    assert "Going on: begins, " in seen[1]
    # After epoch 3 there was an evaluation, with its picture; a page that goes on loads itself again.
    assert "Going on: epoch 3 of 6, " in seen[4]
    assert "<body data-goes-on>" in seen[4]
    assert "<dt>device</dt><dd>cpu</dd>" in seen[4]
    assert "after 3" in seen[4]
    assert "data-goes-on>" not in (folder / report.NAME).read_text()


def test_a_stopped_and_a_failed_run_say_so_and_go_on(tmp_path):
    folder = tmp_path / "run"
    config = Config(workdir=str(folder))

    def stop(epoch):
        if epoch == 4:
            raise Stopped(15, "epoch 3 is saved")

    with pytest.raises(Stopped):
        walks(config, during=stop)
    assert "Stopped by SIGTERM; epoch 3 is saved, " in (folder / report.NAME).read_text()

    def fail(folder):
        raise RuntimeError("a <bug>")

    with pytest.raises(RuntimeError):
        walks(config, after=fail)
    assert "Ended by RuntimeError: a &lt;bug&gt;, " in (folder / report.NAME).read_text()
    walks(config)
    assert "Finished, " in (folder / report.NAME).read_text()
    assert data_of(folder / report.NAME)[0]["curves"][0]["x"] == [1, 2, 3, 4, 5, 6]


def test_what_is_refused_late_leaves_no_page(tmp_path):
    config = Config(workdir=str(tmp_path / "run"))

    def work(folder, stops):
        assert (folder / report.NAME).exists()
        raise SettingError("size", 1.0, "less")

    with pytest.raises(SettingError):
        runs.carry_out(config, work)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug"), MemoryError()])
def test_a_page_that_cannot_be_written_is_said_once_and_harms_nothing(tmp_path, monkeypatch, caplog, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(report, "page", fail)
    folder = tmp_path / "run"
    summary = walks(Config(workdir=str(folder)))
    assert run_folder.read_object(folder / "summary.json") == summary
    assert caplog.text.count("report.html of ") == 1
    assert "the run goes on" in caplog.text
    # The run is whole without its page.
    assert walks(Config(workdir=str(folder))) == summary


@pytest.mark.slow
def test_pages_are_written_at_evaluations_and_otherwise_seldom(tmp_path, monkeypatch):
    """Epochs that take nothing are not followed by a page each."""
    written = []
    write = follow.Follower._write
    monkeypatch.setattr(follow.Follower, "_write", lambda *given: written.append(1) or write(*given))
    for pause, seldom, expected in ((1e6, 0, 3), (0, 1e9, 3), (0, 0, 3 + 12 - 2)):
        monkeypatch.setattr(follow, "_PAUSE", pause)
        monkeypatch.setattr(follow, "_SELDOM", seldom)
        written.clear()
        walks(Config(workdir=str(tmp_path / f"{expected}-{seldom}")))
        # At the start, of two trainings, after two evaluations, and at the end; else after each of twice six epochs.
        assert len(written) == expected + 3


def test_runs_side_by_side(finished, tmp_path, capsys):
    out = tmp_path / "two.html"
    given = (str(finished / "short & small"), str(finished / "long"))
    assert report.run(report.Config(runs=given, out=str(out))) == out
    assert "two.html: " in capsys.readouterr().out
    page = out.read_text()
    assert "<h1>2 runs side by side</h1>" in page
    differ = page[page.index("Settings that differ") : page.index("Results")]
    assert re.findall(r"<tr><th>(\w+)</th>", differ) == ["workdir", "tensorboard", "epochs", "size"]
    assert "<tr><th>size</th><td>0.5</td><td>1</td></tr>" in differ
    same = page[page.index("Settings that are the same in all") :]
    assert "<dt>checkpoint_every</dt><dd>10</dd>" in same
    assert re.search(r"<tr><th>length</th><td>[\d.]+</td><td>[\d.]+</td></tr>", page)
    names = [curve["name"] for curve in data_of(out)[0]["curves"]]
    assert names == ["short & small", "short & small, several", "long", "long, several"]
    assert page.count("data:image/png;base64,") == 2


def test_runs_of_different_experiments_and_unfinished_ones_lie_side_by_side(finished, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"rules": ["vpf", "pcd"], "seeds": null}')
    out = tmp_path / "page.html"
    report.run(report.Config(runs=(str(other), str(finished / "long")), out=str(out)))
    assert "Not finished; saved is nothing yet" in out.read_text()
    assert "<tr><th>rules</th><td>vpf,pcd</td><td></td></tr>" in out.read_text()
    # One of the same name elsewhere is told by its path.
    twin = tmp_path / "more" / "other"
    twin.mkdir(parents=True)
    (twin / "config.json").write_text('{"rules": []}')
    (twin / "metrics.csv").write_text("epoch,length\n1,2\n2,\n3,4\n")
    report.run(report.Config(runs=(str(other), str(twin)), out=str(out)))
    assert f"<th>{twin}</th>" in out.read_text()
    assert "Not finished; saved is epoch 3" in out.read_text()
    assert data_of(out)[0]["curves"] == [{"name": str(twin), "x": [1, 3], "y": [2, 4]}]


def test_the_page_that_a_run_has_written_stays(finished, tmp_path):
    runs = (str(finished / "long"),)
    before = (finished / "long" / report.NAME).read_bytes()
    for out, told in (
        (finished / "long" / report.NAME, "which a run has written itself; it takes another file"),
        (tmp_path, "it takes a file in a folder that exists"),
        (tmp_path / "missing" / "page.html", "it takes a file in a folder that exists"),
    ):
        with pytest.raises(UsageError, match=told):
            report.run(report.Config(runs=runs, out=str(out)))
    with pytest.raises(UsageError, match="it takes folders that differ from one another"):
        report.run(report.Config(runs=runs * 2, out=str(tmp_path / "page.html")))
    assert (finished / "long" / report.NAME).read_bytes() == before


def copy_of(finished, tmp_path):
    return Path(shutil.copytree(finished / "long", tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", b"{", r"config.json cannot be read as JSON that holds names and values"),
        ("config.json", None, r"which holds no config.json; it takes the folder of a run"),
        ("summary.json", b"[]", r"summary.json cannot be read as JSON"),
        ("summary.json", b'{"a": 1}', r"summary.json is not as the run has written it; start the run again"),
        ("metrics.csv", b"epoch,length\n1,x\n", r"metrics.csv is not as the run has written it"),
        ("table.md", None, r"table.md is not as the run has written it"),
    ],
)
def test_damaged_runs_are_refused_in_a_sentence(finished, tmp_path, name, content, told):
    folder = copy_of(finished, tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=told):
        report.run(report.Config(runs=(str(folder),), out=str(tmp_path / "page.html")))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("content", [b"epoch,length\n1,x\n", b"\xff\xfe\x00", b"a,b\n1,2\n", b"epoch\n1,2,3\n"])
def test_a_table_of_metrics_that_is_none_is_refused(finished, tmp_path, content):
    folder = copy_of(finished, tmp_path)
    for name in ("summary.json", "files.sha256"):
        (folder / name).unlink()
    (folder / "metrics.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"metrics.csv cannot be read as a table of numbers"):
        report.run(report.Config(runs=(str(folder),), out=str(tmp_path / "page.html")))


def test_what_is_no_picture_is_left_out(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    (folder / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    report.run(report.Config(runs=(str(folder),), out=str(tmp_path / "page.html")))
    assert "data:image/png" not in (tmp_path / "page.html").read_text()


def test_long_curves_are_thinned_and_keep_their_end():
    rows = [{"epoch": epoch, "length": float(epoch)} for epoch in range(1, 7001)]
    one = report.Run("run", {}, [report.Training("", rows, 7000)], None, "", [], "")
    (chart,) = report.charts([one])
    assert len(chart["curves"][0]["x"]) <= report.MOST_POINTS
    assert chart["curves"][0]["x"][-1] == 7000
    # What is not finite is not drawn.
    one = dataclasses.replace(one, trainings=[report.Training("", [{"epoch": 1, "length": float("nan")}])])
    assert report.charts([one])[0]["curves"] == [{"name": "", "x": (), "y": []}]


def events_of(folder):
    """(step, tag) of every scalar: a record is its length, a checksum, the event and another checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.glob("events.out.tfevents.*"):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    return sorted(found)


@pytest.mark.slow
def test_metrics_become_events_each_step_once(tmp_path):
    pytest.importorskip("tensorboardX")
    whole, parts = (Config(workdir=str(tmp_path / name), tensorboard=True) for name in ("whole", "parts"))
    walks(whole)

    def stop(epoch):
        if epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walks(parts, during=stop)
    walks(parts)
    found = events_of(parts.folder / "tensorboard")
    assert found == events_of(whole.folder / "tensorboard")
    assert [step for step, tag, _ in found if tag == "length"] == [1, 2, 3, 4, 5, 6]
    assert [(step, value) for step, tag, value in found if tag == "evaluated"] == [(3, 30), (6, 60)]
    assert len(events_of(parts.folder / "tensorboard" / "several")) == 6
    # A finished run gets them when they are asked for.
    later = Config(workdir=str(tmp_path / "later"))
    walks(later)
    assert not (later.folder / "tensorboard").exists()
    walks(dataclasses.replace(later, tensorboard=True))
    for name in (".", "several"):
        assert events_of(later.folder / "tensorboard" / name) == events_of(whole.folder / "tensorboard" / name)


def test_events_without_their_package_are_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UsageError, match=r"needs the package tensorboardX, not installed here: install vpf_jax\[tens"):
        walks(Config(workdir=str(tmp_path / "run"), tensorboard=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_commands_are_listed_and_wrong_ones_are_one_line(finished, tmp_path):
    def start(*arguments):
        command = [sys.executable, "-m", "vpf_jax", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    listed = start()
    assert listed.returncode == 0
    assert re.search(r"^  report +writes one HTML page", listed.stdout, re.MULTILINE)
    ended = start("report", str(finished / "long"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "report.html").exists()
    for arguments, told in (
        (["reprot"], "got the command 'reprot'; it takes one of train, sample"),
        (["report"], "got no argument; it takes the folder of a run, or of each of several"),
        (["report", "missing"], "got missing, which is missing; it takes the folder of a run"),
    ):
        ended = start(*arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert told in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("several", [False, True])
def test_pages_in_a_browser(finished, tmp_path, width, several):
    out = tmp_path / "page.html"
    given = [str(finished / name) for name in ("short & small", "long")[: 1 + several]]
    report.run(report.Config(runs=tuple(given), out=str(out)))
    driver = browser.open_page(out, width)
    assert browser.overflow(driver) <= 0
    widths = driver.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == 1 + several
    assert min(widths) > 0

    def epochs():
        """Numbers below each chart."""
        script = "return [...document.querySelectorAll('#charts figure > svg')].map((chart) => "
        inner = "[...chart.querySelectorAll('[text-anchor=middle]')].map((text) => Number(text.textContent)))"
        return driver.execute_script(script + inner)

    def points():
        return driver.execute_script("return document.querySelectorAll('#charts polyline').length")

    all_epochs, all_lines = epochs(), points()
    assert all_epochs[0][-1] == (8 if several else 6)
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    chart = driver.find_element(By.CSS_SELECTOR, "#charts figure > svg")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    size = chart.size["width"]
    drag = ActionChains(driver).move_to_element(chart).move_by_offset(-size * 0.1, 0).click_and_hold()
    drag.move_by_offset(size * 0.25, 0).release().perform()
    assert driver.find_element(By.ID, "whole").is_enabled()
    first, *others = epochs()
    assert min(first) > 1
    assert max(first) < all_epochs[0][-1]
    assert all(other == first for other in others)
    ActionChains(driver).move_to_element(chart).perform()
    assert "epoch" in driver.find_element(By.CSS_SELECTOR, "#charts output").text
    driver.find_element(By.ID, "whole").click()
    assert epochs() == all_epochs
    driver.find_element(By.CSS_SELECTOR, "#legend input").click()
    assert points() < all_lines
    assert browser.console_errors(driver) == []
