"""Progress of a run: lines where nobody watches, a bar with objective and time left on a terminal."""

import io
import sys

from vpf_jax.app.progress import Progress, told_of_flow

ROW = {"objective": 512.25, "max_abs_weight": 0.5}


def test_one_line_per_epoch_without_a_terminal(capsys):
    with Progress(10, 2) as progress:
        progress.report(3, told_of_flow(ROW), 1.25)
        progress.report(4, told_of_flow(ROW | {"parzen_validation": 201.0}), 2.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 3/10: objective 512.25, max |w| 0.50, 1.25 s",
        "epoch 4/10: objective 512.25, max |w| 0.50, Parzen 201.0, 2.50 s",
    ]


def test_a_name_tells_trainings_apart(capsys):
    with Progress(10, 2, "PCD-1") as progress:
        progress.report(3, told_of_flow(ROW), 1.25)
    assert capsys.readouterr().out == "PCD-1, epoch 3/10: objective 512.25, max |w| 0.50, 1.25 s\n"


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, 2) as progress:
        progress.report(3, told_of_flow(ROW), 1.25)
    assert capsys.readouterr().out == ""
    # tqdm shows done/total and [elapsed<left].
    assert "3/10" in terminal.getvalue()
    assert "<" in terminal.getvalue()
    assert "objective 512.25" in terminal.getvalue()
