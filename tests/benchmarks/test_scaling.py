"""Scaling on paper: what compiled steps send is what the formulas say, and hardware figures are used as stated."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import users_environment

from benchmarks import cost, hardware, scaling, scaling_report
from benchmarks.collectives import Collective, collectives
from benchmarks.cost import Plan
from vpf_jax.app.folder import UsageError
from vpf_jax.checks import SettingError

ROOT = Path(__file__).parents[2]
CHIP = hardware.Chip(
    "a chip",
    memory=1000.0,
    memory_peak=200.0,
    bfloat16=1e4,
    node=4,
    inside=hardware.Network("near", peak=100.0, reached=0.5, latency=0.25),
    between=hardware.Network("far", peak=10.0, reached=0.8, latency=2.0),
    reached=0.5,
    memory_reached=0.5,
    usable=0.9,
)


def one(kind, size, group):
    return Collective(kind, (), size, 1, tuple(group))


@pytest.mark.parametrize(
    ("kind", "group", "seconds"),
    [
        # 2 x 3/4 x 800 bytes at 50 a second, two doublings inside.
        ("all-reduce", range(4), 24 + 0.5),
        # One device in each of 8 nodes: 2 x 7/8 x 800 bytes at 8 a second, three doublings between.
        ("all-reduce", range(0, 32, 4), 175 + 6),
        # All of 8 nodes: as much inside, and a quarter of what lies in a node through each port.
        ("all-reduce", range(32), 24 + 0.5 + 43.75 + 6),
        ("all-gather", range(32), 12 + 0.5 + 21.875 + 6),
        # The result is a part of 3,200 bytes.
        ("reduce-scatter", range(4), 48 + 0.5),
        # To 3 of 8 inside, to 4 of 8 in the other node.
        ("all-to-all", range(8), 300 / 50 + 0.5 + 400 / 8 + 2),
        ("collective-permute", (), 100),
        ("all-reduce", range(1), 0),
    ],
    ids=str,
)
def test_seconds_of_a_collective_are_those_of_its_rings(kind, group, seconds):
    np.testing.assert_allclose(hardware.seconds(CHIP, one(kind, 800, group)), seconds)


def test_what_a_device_sends_does_not_depend_on_nodes():
    np.testing.assert_allclose(hardware.sent(one("all-reduce", 800, range(0, 32, 4))), 1400)
    np.testing.assert_allclose(hardware.sent(one("all-gather", 800, range(8))), 700)
    np.testing.assert_allclose(hardware.sent(one("all-to-all", 800, range(8))), 700)


def test_seconds_of_a_step_by_hand():
    step = cost.Step(products=2.0, memory=3.0, travel=1.0)
    assert (step.work, step.total, step.share) == (3.0, 4.0, 0.25)
    # 10 flops, 4 examples, 8 x 16 weights on one device; 44 bytes a weight, 24 an example and unit.
    step = cost.step(CHIP, Plan((8, 16), 4))
    np.testing.assert_allclose((step.products, step.memory), (10 * 4 * 128 / 5e3, (44 * 128 + 24 * 4 * 24) / 100))
    assert step.travel == 0
    np.testing.assert_allclose(hardware.H100.inside.rate, 360e9)
    np.testing.assert_allclose(hardware.V5P.inside.rate, 180e9)


GROUPS = {
    "replica_groups={{0,2},{1,3}}": (0, 2),
    "replica_groups={}": (0, 1, 2, 3, 4, 5, 6, 7),
    "replica_groups=[2,4]<=[8]": (0, 1, 2, 3),
    "replica_groups=[4,2]<=[2,4]T(1,0)": (0, 4),
    "replica_groups=mesh['x'=2,'y'=4] {'y'}": (0, 1, 2, 3),
    "replica_groups=mesh['x'=2,'y'=4] {'x'}": (0, 4),
    "replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}": (0, 4),
    "replica_groups=mesh['x'=2,'y'=4] {'x','y':(1)2}": (0, 2, 4, 6),
    "replica_groups=mesh['x'=2,'y'=4] {'y':(2)2}": (0, 1),
}


@pytest.mark.parametrize("text", GROUPS)
def test_groups_are_read_however_they_are_written(text):
    line = f"  a = f32[2]{{0}} all-reduce(b), channel_id=1, {text}, use_global_device_ids=true, to_apply=sum"
    program = f"HloModule m, num_partitions=8\n\nENTRY main (b: f32[2]) -> f32[2] {{\n{line}\n}}\n"
    (found,) = collectives(program)
    assert found == Collective("all-reduce", ((2,),), 8, 1, GROUPS[text])


def test_groups_of_an_unknown_form_are_refused():
    line = "  a = f32[2]{0} all-gather(b), replica_groups=<torus>"
    with pytest.raises(ValueError, match="another form than the three known ones"):
        collectives(f"HloModule m\n\nENTRY main (b: f32[2]) -> f32[2] {{\n{line}\n}}\n")


PAIR, STACK, INSIDE = (64, 128), (64, 128, 32), (32, 16, 16)
MESHES = ((1, 1), (8, 1), (1, 8), (2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("data", "model"), MESHES)
@pytest.mark.parametrize("sizes", [PAIR, STACK], ids=str)
def test_compiled_steps_send_what_the_formula_says(sizes, data, model):
    row = scaling.measured("", Plan(sizes, 80, data, model))
    np.testing.assert_allclose(row.sent, row.formula, rtol=1e-9)
    assert {len(found.group) for found in row.found} == {count for count in (data, model) if count > 1}
    if data * model > 1:
        # States travel as bytes where they do, and those of the data not at all; sums of units come to it.
        assert 0.95 <= row.sent / cost.told(row.plan) <= 1.13


@pytest.mark.slow
def test_compiled_steps_count_the_flops_and_hold_the_memory_of_the_formulas():
    row = scaling.measured("", Plan((1024, 8192), 1024, 2, 4))
    np.testing.assert_allclose(row.flops, cost.flops(row.plan), rtol=0.1)
    # Weights and two moments; then the gradient and at most as much as is told.
    weights = 1024 * 8192 / 4
    np.testing.assert_allclose(row.state, 12 * weights, rtol=0.01)
    assert 16 * weights < row.state + row.temporary < cost.memory(row.plan)


@pytest.mark.slow
def test_weights_inside_layers_send_one_gradient_along_the_data_axis_and_more_along_the_model_axis():
    row = scaling.measured("", Plan(INSIDE, 80, 8, 1, intra=True))
    np.testing.assert_allclose(row.sent, row.formula, rtol=1e-9)
    row = scaling.measured("", Plan(INSIDE, 80, 1, 8, intra=True))
    assert row.formula is None
    assert row.sent > sum(hardware.sent(found) for found in cost.sent(Plan(INSIDE, 80, 1, 8)))
    with pytest.raises(ValueError, match="weights inside layers on one device along the model axis"):
        cost.sent(row.plan)


def test_formulas_by_hand():
    plan = Plan((4, 6, 2), 40, data=2, model=2)
    assert (plan.devices, plan.units, plan.rows, plan.weights, plan.own_units) == (4, 12, 20, 36, 4 + 3 + 6 + 1)
    assert Plan((4, 6, 2), 40, intra=True).weights == 36 + 36 + 4
    assert cost.flops(plan) == 10 * 20 * 18
    assert cost.traffic(plan) == 44 * 18 + 24 * 20 * 14
    assert cost.memory(plan, examples=100, of_weight=16) == 16 * 18 + 12 * 20 * 14 + 100 * 4
    states, hidden, gradient = cost.sent(plan)
    assert states == Collective("all-reduce", (), 4 * 20 * (4 + 6 + 2), 1, (0, 1))
    assert hidden == Collective("all-gather", (), 20 * 6, 1, (0, 1))
    assert gradient == Collective("all-reduce", (), 4 * (18 + 4 + 3 + 6 + 1 + 2), 1, (0, 2))
    assert cost.told(plan) == 20 * 10 * 8.125 / 2 + 8 * 18 / 2
    assert cost.sent(Plan((4, 6), 40)) == []


@pytest.mark.parametrize("shape", cost.SHAPES)
@pytest.mark.parametrize("examples", [0, 50_000])
def test_the_largest_machine_fits_and_a_larger_one_does_not(shape, examples):
    plan = cost.largest(hardware.H100, shape, 64, 512, examples)
    more = len(plan.sizes) if shape.startswith("stack") else plan.sizes[-1] + 64
    assert cost.fits(hardware.H100, plan, examples)
    assert not cost.fits(hardware.H100, Plan(cost.SHAPES[shape](more), 512, model=64), examples)
    assert all(n % 64 == 0 for n in plan.sizes[1:])


def test_none_is_the_largest_machine_where_no_job_is_as_large():
    assert cost.largest(hardware.V5P, "pair n x n", 2**15, 512) is None
    assert cost.largest(hardware.H100, "stack of layers of 65,536", 3, 512) is None
    assert cost.devices_for(hardware.V5P, (1000, 10**12), 512) is None


def test_ten_thousand_million_units_take_thousands_of_devices():
    sizes = (1000, 10**10 - 1000)
    least = cost.devices_for(hardware.H100, sizes, 512, cost.STATE)
    assert cost.fits(hardware.H100, Plan(sizes, 512, model=least), of_weight=cost.STATE)
    assert not cost.fits(hardware.H100, Plan(sizes, 512, model=least - 1), of_weight=cost.STATE)
    # 160 TB in parts of 72 GB, and what a minibatch takes beside them.
    assert 160e12 / 72e9 < least < 1.5 * 160e12 / 72e9
    assert cost.step(hardware.H100, Plan(sizes, 512, model=4096)).share < 0.1


def test_recommended_meshes_keep_to_the_share_or_say_what_they_would_need():
    kept = cost.recommended(hardware.H100, (8192, 65536), 8, 65536, 0.1)
    assert kept.keeps
    assert kept.needed is None
    assert cost.step(hardware.H100, kept.plan).share < 0.1
    faster = [p for p in cost.meshes((8192, 65536), 8, 65536) if cost.fits(hardware.H100, p)]
    rates = {p: p.batch / cost.step(hardware.H100, p).total for p in faster}
    assert all(cost.step(hardware.H100, p).share >= 0.1 for p in faster if rates[p] > rates[kept.plan])
    missed = cost.recommended(hardware.H100, (8192, 65536), 64, 65536, 0.1)
    assert not missed.keeps
    assert cost.step(hardware.H100, missed.plan).share >= 0.1 > cost.step(hardware.H100, missed.needed).share
    assert missed.needed.batch > 65536
    assert cost.recommended(hardware.H100, (2**20, 2**20), 8, 65536, 0.1) is None


def test_meshes_divide_what_they_cut():
    assert {(p.data, p.model) for p in cost.meshes((10, 8, 4), 8, 4)} == {(4, 2), (2, 4)}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"devices": ()}, "devices=\\(\\)"),
        ({"devices": (8, 1)}, "increasing"),
        ({"devices": (1, 3)}, "powers of 2"),
        ({"devices": (0, 8)}, "devices="),
        ({"devices": (1, 8192)}, "from 1 to 4096"),
        ({"node": 6}, "powers of 2"),
        ({"node": 1}, "of at least 2"),
        ({"lower": 0}, "of at least 1"),
        ({"upper": 100}, "multiples of 512 devices"),
        ({"batch_size": 500}, "multiples of 512 devices"),
        ({"wide": (1024, 1000)}, "multiples of 512 devices"),
        ({"layers": (10, 16, 12)}, "multiples of 8 devices, but for the first"),
        ({"layers": (16, 8)}, "3 to 6"),
        ({"inside": (10, 12)}, "multiples of 8 devices, but for the first"),
        ({"precision": "float8"}, "one of float32, bfloat16"),
        ({"most_share": 1.0}, "below 1"),
        ({"most_batch": 100}, "of at least 256"),
        ({"workdir": ""}, "text that is not empty"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(changed, told):
    with pytest.raises(SettingError, match=told):
        scaling.Config(**changed)


@pytest.mark.slow
def test_a_wrong_flag_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scaling", f"--workdir={tmp_path / 'run'}", "--devices=1,12"]
    done = subprocess.run(command, cwd=ROOT, env=users_environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.strip() == "scaling.py: got --devices=1,12; it takes powers of 2"
    assert not (tmp_path / "run").exists()


def test_more_devices_than_there_are_are_refused():
    # Once it has been started it keeps to what there is.
    count = jax.device_count()
    with pytest.raises(UsageError, match=f"got --devices=4096; JAX has been started with {count}"):
        scaling.pretend(4096)


def small(tmp_path):
    return scaling.Config(
        devices=(1, 8),
        node=4,
        lower=32,
        upper=64,
        batch_size=80,
        rows=20,
        layers=(32, 16, 8),
        inside=(16, 8),
        wide=(64,),
        workdir=str(tmp_path / "run"),
    )


@pytest.mark.slow
def test_the_command_writes_tables_and_pictures(tmp_path, capsys):
    rows = scaling.run(small(tmp_path))
    assert len(rows) == len(list(scaling.plans(small(tmp_path))))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [one["sent"] for one in found] == [row.sent for row in rows]
    assert all(set(one["seconds"]) == {chip.name for chip in hardware.CHIPS} for one in found)
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.count("\n## ") == 6
    assert "| 32 x 64 | data:2,model:4 | 80 |" in table
    assert "nan" not in table
    for name in ("scaling-speed.png", "scaling-size.png"):
        assert (tmp_path / "run" / name).stat().st_size > 1000
    assert "compiled in" in capsys.readouterr().out


def test_words_of_meshes_and_machines():
    assert scaling_report.mesh(Plan((2, 2), 8, 4, 2)) == "data:4,model:2"
    assert scaling_report.mesh(Plan((2, 2), 8)) == "one device"
    assert scaling_report.machine(Plan((2000, 2), 8, intra=True)) == "2,000 x 2, inside too"
    assert "**not met**" in scaling_report.recommended(0.1, 65536)
    assert math.isclose(hardware.V5P.between.rate, 5e9)
