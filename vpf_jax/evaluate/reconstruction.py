"""Corruption of binary images, and the repair of examples of any units by a machine.

Two protocols for an image of which some pixels, the mask, are corrupted. In both the hidden layers start from a
feed-forward sample, Gibbs steps follow (up: the layers of odd index; down: the even ones, among them the visible
layer), and the result is the visible means of the last pass down inside the mask, the given image outside it. In a
two-layer machine the first pass up is the E-step of VPF, a hidden sample given the image.

    reconstruct   the protocol of Liu, Quek and Lin, arXiv 1711.07732, section 6: every pixel is resampled in every
                  step, so that the machine may forget the image it was given
    inpaint       the stricter one: pixels outside the mask are held in every step, so that the chain samples the
                  pixels inside given those outside

A mask is an array of booleans, True for a corrupted pixel: [n_0] for all images alike or [batch, n_0]. Of units with
several entries, categorical ones, it may have one entry for each unit. A machine of any depth is taken; a pairwise
stack is not: its machines share no distribution that one chain could follow, so that a "Gibbs step" of it could mean
several things. Not here: training, figures.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.energy import layer_field
from vpf_jax.machine import BoltzmannMachine, State, check_machine, check_whole_units
from vpf_jax.sample.gibbs import draw_uniforms, sweep_around, sweep_layers
from vpf_jax.sample.streams import Stream, stream_of, substream, uniform
from vpf_jax.stack import check_visible, climb, entries, in_chunks

SIDES = ("top", "bottom", "left", "right")
PROTOCOLS = {
    "paper": "the paper's protocol: 2 free Gibbs steps",
    "clamped": "clamped: 10 steps, uncorrupted pixels held",
}
# What is painted into a band without a look at the rest of the image: the median is the best such guess in L1.
GUESSES = {
    "black": "no machine: black",
    "mean": "no machine: mean of the training images",
    "median": "no machine: median of the training images",
}


def band_mask(side: str, image_shape: tuple[int, int] = (28, 28), width: int | None = None) -> Bool[Array, " n_0"]:
    """The mask of a band along one side of an image, rows or columns, in row-major order of the pixels.

    Args:
      side: "top", "bottom", "left" or "right".
      image_shape: rows and columns of the image; n_0 is their product.
      width: rows or columns of the band, from 1 to all of them; None: 12 of 28, and as large a share of other images.

    Raises:
      ValueError: another side, a width out of range, or an image_shape that is not two positive integers.
    """
    checks.one_of("side", side, SIDES)
    rows, columns = checks.positive_integers("image_shape", image_shape, "rows and columns, both positive", 2, 2)
    row, column = np.indices((rows, columns))
    # Distance of each pixel from the side, and how many there are.
    distances = {
        "top": (row, rows),
        "bottom": (rows - 1 - row, rows),
        "left": (column, columns),
        "right": (columns - 1 - column, columns),
    }
    distance, extent = distances[side]
    number = max(1, round(extent * 12 / 28)) if width is None else checks.as_integer(width)
    if number is None or not 1 <= number <= extent:
        raise ValueError(f"got width={width!r}; a band at the {side} of images {(rows, columns)} takes 1 to {extent}")
    return jnp.asarray((distance < number).ravel())


def random_mask(key: PRNGKeyArray, shape: tuple[int, ...], rate: float | Float[Array, ""]) -> Bool[Array, "*shape"]:
    """A mask in which each pixel of each image is corrupted independently.

    Args:
      key: a random key.
      shape: [n_0] or [batch, n_0].
      rate: probability of corruption, in [0, 1]; may be traced.

    Raises:
      ValueError: a concrete rate out of range.
    """
    checks.probability("rate", rate)
    shape = checks.positive_integers("shape", shape, "[n_0] or [batch, n_0], positive integers", 1, 2)
    return uniform(stream_of(key), shape) < rate


def corrupt(
    key: PRNGKeyArray, visible: Shaped[AnyArray, "batch n_0"], mask: Bool[AnyArray, "*batch n_0"]
) -> Shaped[Array, "batch n_0"]:
    """ORs Bernoulli(1/2) bits into the masked pixels of binary images: half of their zeros become ones.

    Args:
      key: a random key.
      visible: zeros and ones.
      mask: [n_0] or [batch, n_0].

    Returns:
      The corrupted images, in the dtype they came in.

    Raises:
      ValueError: a mask of other than booleans, or of a shape that does not fit.
    """
    visible = jnp.asarray(checks.binary("visible states", visible))
    switched_on = _fit_mask(mask, visible) & (uniform(stream_of(key), visible.shape) < 0.5)
    return jnp.where(switched_on, jnp.ones_like(visible), visible)


def reconstruct(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    corrupted: Shaped[AnyArray, "batch n_0"],
    mask: Bool[AnyArray, "*batch n_0"],
    num_steps: int | Array = 2,
) -> Float[Array, "batch n_0"]:
    """The paper's repair: a hidden sample given the corrupted image, then free Gibbs steps (down, up).

    The mean of a masked pixel is p(v_i = 1 | all other units) after the last pass down; without visible intra-layer
    weights that is p(v_i = 1 | hidden).

    Args:
      key: a random key.
      machine: a machine of any number of layers.
      corrupted: values of its visible units, such as zeros and ones.
      mask: [n_0] or [batch, n_0], or of units of several entries [units] or [batch, units].
      num_steps: passes down, at least 1; may be traced.

    Returns:
      Visible means inside the mask, of binary units in [0, 1], `corrupted` outside it.

    Raises:
      ValueError: states or a mask that do not fit, or a number of steps out of range.
    """
    return _repair(key, machine, corrupted, mask, num_steps, clamp=False)[1]


def inpaint(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    mask: Bool[AnyArray, "*batch n_0"],
    num_steps: int | Array = 10,
) -> Float[Array, "batch n_0"]:
    """Repair with the pixels outside the mask held at their given values in every step; otherwise as `reconstruct`.

    What `visible` holds inside the mask, values of the units, is where the chain starts; a long chain forgets it, and
    its samples follow p(masked pixels, hidden | the other pixels).
    """
    return filled(key, machine, visible, mask, num_steps)[1]


def filled(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    mask: Bool[AnyArray, "*batch n_0"],
    num_steps: int | Array = 10,
) -> tuple[Shaped[Array, "batch n_0"], Float[Array, "batch n_0"]]:
    """The values at the end of the chains of `inpaint`, and the means that it gives."""
    return _repair(key, machine, visible, mask, num_steps, clamp=True)


def reconstruction_error(
    reconstructed: Shaped[AnyArray, "batch n_0"],
    grey: Shaped[AnyArray, "batch n_0"],
    mask: Bool[AnyArray, "*batch n_0"],
) -> Float[Array, " batch"]:
    """L1 distance of each repaired image to its grey original: sum over masked pixels of |difference|.

    Outside the mask the original stands, at distance 0, whatever `reconstructed` holds there.

    Raises:
      ValueError: images of different shapes, a mask that does not fit, or, where values are at hand, images that are
        not finite.
    """
    checks.finite("reconstructed images", reconstructed)
    checks.finite("grey images", grey)
    reconstructed, grey = jnp.asarray(reconstructed), jnp.asarray(grey, jnp.float32)
    if reconstructed.shape != grey.shape:
        raise ValueError(
            f"got reconstructed images of shape {reconstructed.shape} and grey ones of shape {grey.shape}; "
            "both are [batch, n_0], one for one"
        )
    return jnp.sum(jnp.where(_fit_mask(mask, grey), jnp.abs(reconstructed - grey), 0), axis=1)


@jax.jit
def repair(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    visible: Shaped[Array, "batch n_0"],
    mask: Bool[Array, "*batch n_0"],
) -> dict[str, Float[Array, "batch n_0"]]:
    """The same corrupted images repaired by each of `PROTOCOLS`, and "corrupted" as they were given."""
    corrupt_key, paper_key, clamped_key = jax.random.split(key, 3)
    corrupted = corrupt(corrupt_key, visible, mask)
    return {
        "paper": reconstruct(paper_key, machine, corrupted, mask),
        "clamped": inpaint(clamped_key, machine, corrupted, mask),
        "corrupted": corrupted,
    }


def band_errors(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    visible: Shaped[Array, "batch n_0"],
    grey: Float[Array, "batch n_0"],
    image_shape: tuple[int, int],
) -> dict[str, dict[str, float]]:
    """Mean `reconstruction_error` of a band (`band_mask`), by protocol and side.

    Args:
      key: a random key.
      machine: repairs.
      visible: the images, zeros and ones.
      grey: the same before they were binarised.
      image_shape: rows and columns.
    """
    found: dict[str, dict[str, float]] = {protocol: {} for protocol in PROTOCOLS}
    for side, side_key in zip(SIDES, jax.random.split(key, len(SIDES)), strict=True):
        mask = band_mask(side, image_shape)
        repaired = repair(side_key, machine, visible, mask)
        for protocol, errors in found.items():
            errors[side] = float(jnp.mean(reconstruction_error(repaired[protocol], grey, mask)))
    return found


def guess_errors(
    train: Float[Array | np.ndarray, "num_train n_0"],
    grey: Float[Array | np.ndarray, "batch n_0"],
    image_shape: tuple[int, int],
) -> dict[str, dict[str, float]]:
    """Mean `reconstruction_error` of each of `GUESSES`, made of the training images, by side."""
    examples, originals = np.asarray(train), np.asarray(grey, np.float64)
    painted = {
        "black": np.zeros(grey.shape[1]),
        "mean": examples.mean(axis=0, dtype=np.float64),
        "median": np.median(examples, axis=0),
    }
    masks = {side: np.asarray(band_mask(side, image_shape)) for side in SIDES}
    return {
        guess: {side: float(np.abs(originals - image)[:, mask].sum(axis=1).mean()) for side, mask in masks.items()}
        for guess, image in painted.items()
    }


def _repair(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    mask: Bool[AnyArray, "*batch n_0"],
    num_steps: int | Array,
    *,
    clamp: bool,
) -> tuple[Shaped[Array, "batch n_0"], Float[Array, "batch n_0"]]:
    check_machine(machine)
    check_visible((machine,), visible)
    num_steps = checks.traced_integer("num_steps", num_steps, 1)
    unit = machine.layer_units[0]
    visible = unit.widened(visible)
    mask = _fit_mask(by_entry(mask, machine), visible)
    check_whole_units("a mask", mask, machine)

    def of_rows(stream: Stream, rows: Array) -> tuple[Array, Array]:
        given, inside = visible[rows], mask[rows]

        def step(i: Array, state: State) -> State:
            uniforms = draw_uniforms(substream(stream, i), state)
            if clamp:
                return sweep_around(machine, state, given, inside, uniforms)
            return jax.vmap(sweep_layers, in_axes=(None, 0, 0))(machine, state, uniforms)

        (hidden,) = climb(substream(stream, 0), (machine,), given)
        state = jax.lax.fori_loop(1, num_steps + 1, step, (given, *hidden.forward))
        means = unit.mean(jax.vmap(lambda s: layer_field(machine, s, 0))(state))
        return jnp.where(inside, state[0], given), jnp.where(inside, means, given.astype(means.dtype))

    values, found = in_chunks(stream_of(key), of_rows, jnp.arange(len(visible)), entries((machine,)))
    return values, checks.spoilt(found, machine, visible)


def by_entry(mask: Bool[AnyArray, "*batch units"], machine: BoltzmannMachine) -> Bool[AnyArray, "*batch n_0"]:
    """The mask of visible entries that one of units stands for; one of entries as it is."""
    owned = machine.owners(0)
    if owned is None or jnp.ndim(mask) == 0 or jnp.shape(mask)[-1] != owned[-1] + 1:
        return mask
    return mask[..., owned]


def _fit_mask(mask: Bool[AnyArray, "*batch n_0"], images: Shaped[AnyArray, "batch n_0"]) -> Bool[Array, "batch n_0"]:
    """The mask with one row for each image, or ValueError."""
    mask = jnp.asarray(checks.array("a mask", mask, "an array of booleans"))
    fits = mask.dtype == bool and mask.shape in (images.shape, images.shape[1:])
    if not fits or images.ndim != 2 or images.shape[0] == 0:
        raise ValueError(
            f"got a mask of shape {mask.shape} and dtype {mask.dtype} for images of shape {images.shape}; it takes "
            "booleans, [n_0] or [batch, n_0], for images [batch, n_0], batch at least 1"
        )
    return jnp.broadcast_to(mask, images.shape)
