"""The playground: its sampler against enumeration, run by Node; what is stored; the page in a browser.

The statistical tests draw `NUM_CHAINS` chains with fixed seeds of the page's own generator. The count of a state of
probability p has standard deviation sqrt(N p (1 - p)); every state must lie within four of them, and so must the
chi-square statistic of the whole histogram (`oracles.fit`).
"""

import base64
import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import browser
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES

from vpf_jax import BoltzmannMachine, init_stack, units, untie_stack
from vpf_jax.app import playground
from vpf_jax.app.folder import UsageError
from vpf_jax.checkpoint import CheckpointError, save_checkpoint
from vpf_jax.checks import SettingError
from vpf_jax.data import Dataset, DatasetError, Part, register_source

NUM_CHAINS = 40_000
SAMPLER = Path(playground.__file__).parent / "pages" / "sampler.js"
DOCUMENTED = Path(__file__).parents[2] / "docs" / "_extra" / "playground.html"
SHAPE = (6, 8)


def node(**given):
    """What tests/app/sample.js gives."""
    if shutil.which("node") is None:
        pytest.skip("Node is needed to run the page's sampler, and is not installed")
    command = ["node", str(Path(__file__).with_name("sample.js"))]
    told = json.dumps({"sampler": str(SAMPLER), "seed": 1} | given)
    return json.loads(subprocess.run(command, input=told, capture_output=True, text=True, check=True).stdout)


def numbers(block):
    """What a stored array holds, in double precision."""
    kept = np.frombuffer(
        base64.b64decode(block["data"]), {"float32": "<f4", "float16": "<f2", "int8": "<i1"}[block["format"]]
    )
    values = kept.astype(np.float64) * block.get("scale", 1)
    if not block["symmetric"]:
        return values.reshape(block["shape"])
    matrix = np.zeros(block["shape"])
    matrix[np.triu_indices(len(matrix), 1)] = values
    return matrix + matrix.T


def flat(stored, temperature):
    """The machine of the oracles that a stored one is, as units of zeros and ones, every parameter divided by T."""
    blocks = {
        name: [None if b is None else numbers(b) for b in stored[name]] for name in ("biases", "weights", "intra")
    }
    machine = oracles.flatten(**blocks)
    if stored["units"][0]["low"] == -1:
        # s = 2 x - 1 in - sum w s s' - sum b s, but for a constant.
        machine = machine._replace(
            coupling=4 * machine.coupling, bias=2 * machine.bias - 2 * machine.coupling.sum(axis=1)
        )
    return machine._replace(coupling=machine.coupling / temperature, bias=machine.bias / temperature)


def ends(stored, starts, *, held=(), temperature=1.0, sweeps=1, seed=1):
    """How many chains end in each state, from starts of zeros and ones."""
    low = stored[0]["units"][0]["low"]
    mask = [int(i in held) for i in range(stored[0]["biases"][0]["shape"][0])]
    values = (starts * (1 - low) + low).astype(int).tolist()
    found = node(machines=stored, starts=values, held=mask, temperature=temperature, sweeps=sweeps, seed=seed)["ends"]
    states = (np.array(found) - low) / (1 - low)
    return np.bincount(oracles.state_numbers(states), minlength=2 ** states.shape[1])


def assert_agrees(counts, law):
    assert max(oracles.fit(counts, law)) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "unit", "held", "temperature", "precision"),
    [
        ("rbm-peaked", units.BINARY, (), 1.0, "float32"),
        ("rbm-peaked", units.BINARY, (0, 3), 0.7, "int8"),
        ("rbm-moderate", units.SPIN, (1,), 1.6, "float32"),
        ("visible-peaked", units.BINARY, (2,), 1.0, "float16"),
        ("semi_restricted-peaked", units.BINARY, (1,), 2.0, "float16"),
        ("semi_restricted-peaked", units.SPIN, (), 1.0, "float32"),
        ("dbm-moderate", units.BINARY, (0,), 0.5, "float32"),
        ("intra_dbm-peaked", units.BINARY, (), 1.0, "int8"),
        ("intra_dbm-moderate", units.SPIN, (0, 2), 0.8, "float32"),
    ],
)
def test_a_sweep_has_the_transition_probabilities_of_the_stored_machine(family, unit, held, temperature, precision):
    """From the state where the sweep in the opposite order differs most; the opposite order must be told apart."""
    case = CASES[family]
    stored = playground.stored_machine(case.machine.replace(units=unit), precision)
    machine = flat(stored, temperature)
    order = [unit for unit in oracles.sweep_order(case.sizes) if unit not in held]
    every = np.eye(2 ** sum(case.sizes))
    right, wrong = (oracles.resample(machine, every, units) for units in (order, order[::-1]))
    start = int(np.argmax(np.abs(right - wrong).sum(axis=1)))
    starts = np.tile(oracles.all_states(sum(case.sizes))[start], (NUM_CHAINS, 1))
    counts = ends([stored], starts, held=held, temperature=temperature)
    assert_agrees(counts, right[start])
    assert max(oracles.fit(counts, wrong[start])) > 6


@pytest.mark.slow
@pytest.mark.parametrize("family", ["rbm-moderate", "intra_dbm-moderate"])
def test_a_long_chain_samples_the_other_units_given_the_held_pixels(family):
    case = CASES[family]
    stored = playground.stored_machine(case.machine, "float16")
    start = oracles.all_states(sum(case.sizes))[1]
    counts = ends([stored], np.tile(start, (NUM_CHAINS, 1)), held=(0, 1), sweeps=15, temperature=1.5)
    assert_agrees(counts, given(oracles.probabilities(flat(stored, 1.5)), start, (0, 1)))


def given(law, start, held):
    """The law of all units given the values that some have in a state."""
    fits = (oracles.all_states(len(start))[:, list(held)] == start[list(held)]).all(axis=1)
    return np.where(fits, law, 0) / law[fits].sum()


def network_law(machines):
    """p(x) of a stack as a deep belief network, [2^n], the units of each layer once, bottom first.

    The top machine's law, times p(lower layer | upper layer) of every machine below it.
    """
    sizes = [machine.sizes[0] for machine in machines[:-1]]
    bottoms = np.cumsum([0, *sizes])
    total = int(bottoms[-1]) + len(machines[-1].bias)
    states = oracles.all_states(total)
    log_law = -oracles.energies(machines[-1], states[:, bottoms[-1] :])
    for machine, bottom in zip(machines[:-1], bottoms, strict=False):
        joint = -oracles.energies(machine, states[:, bottom : bottom + len(machine.bias)])
        uppers = states[:, bottom + machine.sizes[0] : bottom + len(machine.bias)]
        lowers = oracles.all_states(machine.sizes[0])
        every = [-oracles.energies(machine, np.hstack([np.tile(x, (len(uppers), 1)), uppers])) for x in lowers]
        log_law += joint - np.logaddexp.reduce(every, axis=0)
    return np.exp(log_law - oracles.log_sum_exp(log_law))


@functools.cache
def some_stack(unit):
    """Three machines of 3-3-2-2 units, with weights inside every hidden layer, one scale for all."""
    rng = np.random.default_rng(3)

    def machine(n, m):
        inside = np.triu(rng.normal(size=(m, m)), 1)
        blocks = rng.normal(size=n), rng.normal(size=m), rng.normal(size=(n, m)), inside + inside.T
        b, c, w, l = (jnp.asarray(0.8 * block, jnp.float32) for block in blocks)
        return BoltzmannMachine((b, c), (w,), (None, l), units=unit)

    return machine(3, 3), machine(3, 2), machine(2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "held"), [(units.BINARY, ()), (units.BINARY, (0, 2)), (units.SPIN, (0, 1, 2))], ids=str
)
def test_a_stack_is_sampled_as_a_deep_belief_network_given_the_held_pixels(unit, held):
    """Exact draws stay exact draws, and all chains from one state come to the same law."""
    temperature = 1.3
    stored = [playground.stored_machine(machine, "float32") for machine in some_stack(unit)]
    law = network_law([flat(machine, temperature) for machine in stored])
    states = oracles.all_states(10)
    start = states[37]
    law = given(law, start, held) if held else law
    exact = states[np.random.default_rng(0).choice(len(law), NUM_CHAINS, p=law)]
    assert_agrees(ends(stored, exact, held=held, temperature=temperature), law)
    from_one = ends(stored, np.tile(start, (10_000, 1)), held=held, temperature=temperature, sweeps=25, seed=2)
    assert_agrees(from_one, law)


def test_a_directed_machine_sends_down_by_its_backward_weights():
    """Two sweeps of a machine of one and one unit against the product of its four conditionals."""
    up, down, bias = 2.0, -3.0, 0.5
    machine = BoltzmannMachine(
        tuple(jnp.full(1, bias) for _ in range(2)),
        (jnp.full((1, 1), up),),
        (None, None),
        backward=(jnp.full((1, 1), down),),
    )
    counts = ends([playground.stored_machine(machine, "float32")], np.tile([1, 0], (NUM_CHAINS, 1)))
    hidden = 1 / (1 + np.exp(-(bias + up)))
    on = [1 / (1 + np.exp(-(bias + down * h))) for h in (0, 1)]
    law = [(1 - hidden) * (1 - on[0]), (1 - hidden) * on[0], hidden * (1 - on[1]), hidden * on[1]]
    assert_agrees(counts, np.array(law))


def test_the_generator_draws_uniform_independent_numbers_that_its_seed_determines():
    drawn = np.array(node(seed=5)["uniforms"])
    assert np.array_equal(drawn, node(seed=5)["uniforms"])
    assert not np.isin(drawn, node(seed=6)["uniforms"]).any()
    cells = np.bincount((10 * drawn[:-1]).astype(int) * 10 + (10 * drawn[1:]).astype(int), minlength=100)
    assert_agrees(cells, np.full(100, 0.01))
    # Serial correlation of 10,000 numbers has standard error 0.01.
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.04


@pytest.mark.parametrize("precision", playground.PRECISIONS)
def test_the_page_reads_the_numbers_that_were_stored(precision):
    rng = np.random.default_rng(0)
    inside = np.triu(rng.normal(size=(5, 5)), 1)
    arrays = rng.normal(size=(4, 3)), inside + inside.T, np.array([0, 1e-5, -3e-8, 60000]), np.zeros((2, 2))
    blocks = [playground.stored(array, precision, symmetric=i == 1) for i, array in enumerate(arrays)]
    for block, found, array in zip(blocks, node(blocks=blocks)["blocks"], arrays, strict=True):
        np.testing.assert_allclose(found, numbers(block).ravel(), rtol=1e-7)
        error = np.abs(numbers(block) - array).max()
        assert error <= np.abs(array).max() * {"float32": 2**-24, "float16": 2**-11, "int8": 0.5 / 127}[precision]
    assert np.array_equal(numbers(blocks[1]), numbers(blocks[1]).T)


def test_weights_beyond_the_precision_are_refused():
    with pytest.raises(ValueError, match="got weights up to 70000; float16 holds up to 65504"):
        playground.stored(np.array([7e4, 1]), "float16")


@pytest.mark.parametrize("precision", playground.PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(precision, value):
    with pytest.raises(ValueError, match="got parameters that are not finite"):
        playground.stored(np.array([value, 1]), precision)


@register_source("playground_bars")
def bars(name, data_dir):
    """Images of 6 x 8 pixels with a bar of two columns, or of two rows."""
    if data_dir is not None:
        raise DatasetError(f"{data_dir} holds no bars")
    rng = np.random.default_rng(0)

    def part(count):
        images, labels = np.zeros((count, *SHAPE), np.float32), np.arange(count, dtype=np.int32) % 2
        for image, label in zip(images, labels, strict=True):
            place = rng.integers(0, SHAPE[label] - 1)
            image[(slice(None), slice(place, place + 2)) if label else slice(place, place + 2)] = 1
        return Part(images.reshape(count, -1), labels)

    return Dataset(name, part(40), part(10), part(10), shape=SHAPE, classes=2)


def make_run(folder, stack, dataset="playground_bars"):
    """A folder such as a run leaves."""
    save_checkpoint(folder / "checkpoints", 1, {"stack": stack})
    (folder / "config.json").write_text(json.dumps({"dataset": dataset, "data_dir": None}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of an RBM and of an intra-layer stack, untrained, of the shape of the bars."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"rbm": ((48, 12), False), "stack": ((48, 12, 10, 5), True)}
    for seed, (name, (sizes, intra)) in enumerate(made.items()):
        stack = jax.tree.map(lambda leaf: 3 * leaf, init_stack(jax.random.key(seed), sizes, intra))
        make_run(folder / name, stack)
    return folder


def content(path):
    return json.loads(re.search(r'id="content">(.*?)</script>', path.read_text(), re.DOTALL)[1])


@pytest.mark.slow
def test_one_file_holds_the_machines_the_shape_the_prior_and_examples_of_every_class(runs, capsys):
    path = playground.run(playground.Config(run=str(runs / "stack"), examples=3))
    assert path == runs / "stack" / "playground.html"
    assert f"{path}: " in capsys.readouterr().out
    found = content(path)
    assert [block["shape"] for machine in found["machines"] for block in machine["weights"]] == [
        [48, 12],
        [12, 10],
        [10, 5],
    ]
    assert found["shape"] == [6, 8]
    assert [example["label"] for example in found["examples"]] == [0, 1, 0]
    assert [len(base64.b64decode(example["bits"])) for example in found["examples"]] == [6, 6, 6]
    prior = numbers(found["prior"])
    assert prior.shape == (5,)
    assert ((prior > 0) & (prior < 1)).all()
    assert "16-bit" in found["precision"]
    # Nothing is read from elsewhere.
    assert not re.search(r"(?:src|href)=.?(?!.?data:)|https?:|@@|@import|fetch\(", path.read_text())


def test_a_page_without_examples_needs_no_data_and_another_file_may_be_named(runs, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(runs / "rbm" / "checkpoints", bare / "checkpoints")
    path = playground.write_playground(bare, tmp_path / "page.html", examples=0, precision="int8")
    found = content(path)
    assert (path, found["shape"], found["prior"], found["examples"]) == (tmp_path / "page.html", [6, 8], None, [])
    with pytest.raises(UsageError, match=r"no config\.json that names its data; --examples=0 writes a page without"):
        playground.write_playground(bare)


def test_the_page_of_the_documentation_is_small_and_has_the_sources_as_they_are():
    """Where it has not, `assembled(content(DOCUMENTED))` is what to write there."""
    assert DOCUMENTED.stat().st_size < 500_000
    assert DOCUMENTED.read_text() == playground.assembled(content(DOCUMENTED))


def test_a_name_cannot_leave_its_place_in_the_page():
    stack = init_stack(jax.random.key(0), (4, 2))
    page = playground.playground_page(stack, "</script><script>alert(1)</script>")
    assert "<script>alert" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page


@pytest.mark.slow
def test_spins_and_directed_machines_are_stored_with_all_they_have():
    spins = init_stack(jax.random.key(0), (48, 3), units=units.SPIN)
    found = playground.playground_page(spins, "spins", data=bars("playground_bars", None), examples=1)
    stored = json.loads(re.search(r'id="content">(.*?)</script>', found, re.DOTALL)[1])
    assert stored["machines"][0]["units"] == [{"low": -1, "high": 1}] * 2
    prior = numbers(stored["prior"])
    assert ((prior > 0) & (prior < 1)).all()
    (directed,) = untie_stack(jax.random.key(1), init_stack(jax.random.key(0), (4, 2), intra=True))
    kept = playground.stored_machine(directed, "float32")
    np.testing.assert_array_equal(numbers(kept["backward"][0]), directed.backward[0])
    assert not kept["intra"][1]["symmetric"]


def test_what_the_page_cannot_sample_or_write_is_refused_in_a_sentence(runs, tmp_path):
    (upper,) = init_stack(jax.random.key(0), (3, 2))
    inside = CASES["semi_restricted-moderate"].machine
    with pytest.raises(ValueError, match=r"machine 0, below the top one, has layer sizes \(4, 3\) and weights inside"):
        playground.playground_page((inside, upper), "no")
    with pytest.raises(
        UsageError, match=r"got .*/absent, which is no folder; the playground takes the folder of a run"
    ):
        playground.write_playground(tmp_path / "absent")
    with pytest.raises(UsageError, match="holds no checkpoints"):
        playground.write_playground(tmp_path)
    damaged = make_run(tmp_path / "damaged", init_stack(jax.random.key(0), (4, 2)))
    (damaged / "checkpoints" / "1" / "record.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
        playground.write_playground(damaged)
    with pytest.raises(SettingError, match=r"got out=.*missing/page\.html'; it takes a file in a folder that exists"):
        playground.write_playground(runs / "rbm", tmp_path / "missing" / "page.html")
    with pytest.raises(SettingError, match="got precision=int4; it takes one of float32, float16, int8"):
        playground.write_playground(runs / "rbm", precision="int4")
    with pytest.raises(DatasetError, match="holds no bars; or --examples=0 for a page without examples"):
        playground.write_playground(runs / "rbm", data_dir=tmp_path)
    other = make_run(tmp_path / "other", init_stack(jax.random.key(0), (4, 2)))
    with pytest.raises(UsageError, match="got data playground_bars of 48 pixels for a stack of 4; they are the same"):
        playground.write_playground(other)
    strange = make_run(tmp_path / "strange", init_stack(jax.random.key(0), (4, 2)), dataset="tea_leaves")
    with pytest.raises(UsageError, match="a run on 'tea_leaves', which no source loads here"):
        playground.write_playground(strange)
    assert not list(tmp_path.rglob("*.html"))


# --- in a browser ---


@pytest.fixture(scope="module")
def pages(runs):
    return {name: playground.write_playground(runs / name) for name in ("rbm", "stack")}


def script(driver, text, *arguments):
    return driver.execute_script(text, *arguments)


def steps(driver):
    return int(re.match(r"[\d,]+", driver.find_element("id", "status").text)[0].replace(",", ""))


def wait_for_steps(driver, more=3):
    from selenium.webdriver.support.ui import WebDriverWait

    before = steps(driver)
    WebDriverWait(driver, 20).until(lambda _: steps(driver) >= before + more)


def press(driver, name):
    driver.find_element("id", name).click()


def held(driver):
    return np.array(script(driver, "return Array.from(playground.sampler.held)"))


def picture(driver):
    """The values of the pixels, as rows and columns."""
    return np.array(script(driver, "return Array.from(playground.sampler.states[0])")).reshape(SHAPE)


def colour(driver, name, row, column):
    """Of a cell of the picture, as it is seen."""
    found = script(
        driver,
        "const [name, y, x] = arguments, canvas = document.getElementById(name);"
        "return Array.from(canvas.getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data)",
        name,
        (row + 0.5) / SHAPE[0],
        (column + 0.5) / SHAPE[1],
    )
    return found[:3]


def stroke(driver, kind, start, end):
    """Drags a brush over the picture from one cell to another."""
    from selenium.webdriver import ActionChains

    driver.find_element("css selector", f"[value={kind}]").click()
    canvas = driver.find_element("id", "visible")
    script(driver, "arguments[0].scrollIntoView({block: 'center'})", canvas)
    width, height = canvas.size["width"], canvas.size["height"]

    def offset(cell):
        return (
            round(((cell[1] + 0.5) / SHAPE[1] - 0.5) * width),
            round(((cell[0] + 0.5) / SHAPE[0] - 0.5) * height),
        )

    (x0, y0), (x1, y1) = offset(start), offset(end)
    actions = ActionChains(driver, duration=50).move_to_element_with_offset(canvas, x0, y0).click_and_hold()
    actions.move_by_offset(x1 - x0, y1 - y0).release().perform()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["rbm", "stack"])
def test_the_page_dreams_and_is_drawn_on(pages, name, width):
    driver = browser.open_page(pages[name], width)
    wait_for_steps(driver)
    canvases = ["visible", "layer-1"] + (["layer-2", "layer-3"] if name == "stack" else [])
    for canvas in canvases:
        colours = script(
            driver,
            "const c = document.getElementById(arguments[0]);"
            "const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return new Set(new Uint32Array(pixels.buffer)).size",
            canvas,
        )
        assert colours > 2, canvas
    assert browser.overflow(driver) == 0
    press(driver, "clear")
    assert not picture(driver).any()
    script(driver, "document.getElementById('width').value = 1")
    stroke(driver, "draw", (1, 1), (1, 6))
    stroke(driver, "erase", (4, 1), (4, 6))
    expected = np.zeros(SHAPE)
    expected[1, 1:7] = expected[4, 1:7] = 1
    assert np.array_equal(held(driver).reshape(SHAPE), expected)
    press(driver, "dream")
    for _ in range(3):
        wait_for_steps(driver, 2)
        found = picture(driver)
        assert found[1, 1:7].all()
        assert not found[4, 1:7].any()
        assert colour(driver, "visible", 1, 3) == [255, 190, 80]
        assert colour(driver, "visible", 4, 3) == [0, 52, 92]
    # Somewhere the machine has filled in what was left to it.
    free = np.array(script(driver, "return Array.from(playground.sampler.probabilities[0])"))[
        ~held(driver).astype(bool)
    ]
    assert ((free > 0) & (free < 1)).all()
    press(driver, "dream")
    before = steps(driver)
    press(driver, "step")
    assert steps(driver) == before + 1
    stroke(driver, "release", (1, 1), (1, 6))
    assert held(driver).sum() == 6
    press(driver, "release")
    assert held(driver).sum() == 0
    assert browser.console_errors(driver) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_an_example_is_repaired_while_its_other_half_is_held(pages, width):
    driver = browser.open_page(pages["stack"], width)
    driver.find_element("css selector", "#side option:nth-child(4)").click()
    driver.find_elements("css selector", "#examples button")[1].click()
    wait_for_steps(driver)
    packed = base64.b64decode(content(pages["stack"])["examples"][1]["bits"])
    original = np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(SHAPE)
    assert np.array_equal(held(driver).reshape(SHAPE), np.tile([1] * 4 + [0] * 4, (6, 1)))
    assert np.array_equal(picture(driver)[:, :4], original[:, :4])
    given, now = map(int, re.search(r"given (\d+), now (\d+)", driver.find_element("id", "error").text).groups())
    assert 0 <= given <= 24
    assert 0 <= now <= 24
    assert browser.overflow(driver) == 0
    press(driver, "restart")
    assert held(driver).sum() == 0
    assert not driver.find_element("id", "compared").is_displayed()
    assert browser.console_errors(driver) == []


def test_the_keyboard_draws_and_the_temperature_is_the_samplers(pages):
    from selenium.webdriver.common.keys import Keys

    driver = browser.open_page(pages["rbm"])
    press(driver, "clear")
    canvas = driver.find_element("id", "visible")
    canvas.send_keys(Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ENTER)
    script(driver, "document.getElementById('width').value = 1")
    canvas.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.SPACE)
    assert held(driver).reshape(SHAPE)[[2, 5], [3, 3]].all()
    press(driver, "release")
    spread = []
    for temperature in ("0.1", "3"):
        script(driver, "document.getElementById('temperature').value = arguments[0]", temperature)
        press(driver, "step")
        means = np.array(script(driver, "return Array.from(playground.sampler.probabilities[0])"))
        spread.append(np.abs(means - 0.5).mean())
    assert spread[0] > 2 * spread[1]
    assert browser.console_errors(driver) == []


def test_a_user_who_wants_less_motion_starts_the_dream_by_hand(pages):
    driver = browser.open_page(pages["rbm"])
    media = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    try:
        driver.refresh()
        assert steps(driver) == 0
        assert driver.find_element("id", "dream").text == "Dream"
        press(driver, "dream")
        wait_for_steps(driver)
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
