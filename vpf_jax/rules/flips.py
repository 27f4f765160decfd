"""Flips of visible units with the hidden layer averaged or summed out in closed form, and the rules that sum over them.

    mpf     minimum probability flow on the marginal: sum_i exp((F(x) - F(x with bit i flipped)) / 2), F the free energy
            (Sohl-Dickstein et al., arXiv 0906.4779; Im, Buchman and Taylor, arXiv 1412.6617)
    pl      pseudo-likelihood: - sum_i log p(x_i | the other visible bits) (Besag 1975)
    ratio   ratio matching: sum_i p(bit i flipped | the other visible bits)^2 (Hyvarinen 2007)

For a two-layer machine whose hidden units are independent given the visible ones, and for a fully visible machine, two
quantities belong to the flip of each visible unit i. For bits, with s_i = 1 - 2 x_i, the field z_i of bit i without the
hidden layer (bias and visible intra-layer input), and probabilities p_j of the hidden units,

    averaged   log E_h[delta_i]            = (1/2) s_i z_i + sum_j log(1 + p_j (exp(s_i w_ij / 2) - 1))
    summed     log p(x with i flipped)/p(x) =      s_i z_i + sum_j log(1 + p_j (exp(s_i w_ij) - 1))

The first, h drawn from p, is the flip rate of variational probability flow (Liu, Quek and Lin, arXiv 1711.07732)
without the noise of sampled hidden states. The second, p_j = p(h_j = 1 | x), belongs to the free energy; minimum
probability flow on the marginal, pseudo-likelihood and ratio matching are sums of functions of it. Units of two other
values a step apart have s_i times the step, and exponents times both steps.

Both are sums over all pairs (i, j) for every example: batch * n_0 * n_1 terms, formed for some visible units at a time
so that they take at most `neighbours.CHUNK_BYTES`.

The rules take units of other kinds, too, in either layer (`neighbours`). A unit with several neighbouring values then
has a flow to each; its pseudo-likelihood is over all its values, of real ones that of a machine without hidden units;
the flow of real values is score matching. Not here: what is done with sampled hidden states (`vpf`).
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Shaped

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.energy import upward_field
from vpf_jax.machine import BoltzmannMachine, State, check_machine, check_symmetric
from vpf_jax.rules import neighbours
from vpf_jax.rules.base import Estimate, Rule, register
from vpf_jax.rules.neighbours import Term, fields_inside, inside_gradient, num_visible_units
from vpf_jax.sample.streams import Stream, permutation
from vpf_jax.settings import setting
from vpf_jax.sharding import mean_of_parts
from vpf_jax.units import TwoValued, Unit, two_valued


@dataclasses.dataclass(frozen=True)
class FlipRule(Rule):
    """A sum over the flips of visible units of a function of log p(x with the unit flipped) / p(x)."""

    of_log_ratio: ClassVar[staticmethod]

    flips_per_step: int | None = setting(
        None, "Visible units, drawn at random, whose flips a step counts; left out: all", least=1
    )

    @classmethod
    @abc.abstractmethod
    def term(cls, kind: Unit, alone: bool) -> Term:
        """What is summed over visible units of a kind, in a machine without a hidden layer (`alone`) or with one.

        Raises ValueError, in one sentence, where that is not defined.
        """

    @classmethod
    def terms(cls, machine: BoltzmannMachine) -> Callable[[Unit], Term]:
        """`term` of the kinds of visible units of a machine; raises ValueError where one of them has none."""
        alone = len(machine.sizes) == 1
        for kind, _ in machine.layer_units[0].segments(machine.sizes[0]):
            cls.term(kind, alone)
        return lambda kind: cls.term(kind, alone)

    @classmethod
    def check(cls, machine: BoltzmannMachine, what: str) -> None:
        """Raises ValueError for a machine that the rule does not take."""
        check_summable(machine, what, layers=(1, 2))
        cls.terms(machine)

    @classmethod
    def flow(
        cls, machine: BoltzmannMachine, visible: Shaped[Array, "batch n_0"], units: Int[Array, " num_units"] | None
    ) -> tuple[Float[Array, ""], BoltzmannMachine]:
        """The objective and its gradient; of units of two values by their shorter sums."""
        if _all_two_valued(machine):
            return _two_valued_flow(machine, visible, cls.of_log_ratio, units)
        return neighbours.flow(machine, visible, cls.terms(machine), units)

    def accepts(self, machine: BoltzmannMachine) -> None:
        self.check(machine, f"rule {self.name!r}")
        check_flips_per_step(self.flips_per_step, machine)

    def estimate(
        self, stream: Stream, machine: BoltzmannMachine, inference: BoltzmannMachine, states: State, carry: Any
    ) -> Estimate:
        units = draw_units(stream, machine, self.flips_per_step)
        self.check(machine, f"rule {self.name!r}")
        visible, units = _check_flips(machine, states[0], units)
        return Estimate(*mean_of_parts(lambda rows: self.flow(machine, rows, units), visible), carry)


@register
@dataclasses.dataclass(frozen=True)
class MPF(FlipRule):
    """Minimum probability flow on the marginal of the visible units."""

    name = "mpf"
    of_log_ratio = staticmethod(lambda log_ratio: jnp.exp(log_ratio / 2))

    epsilon: float = setting(0.01, "The small time of probability flow, which scales it against the decay", above=0)

    @property
    def scale(self) -> float:
        return self.epsilon

    @classmethod
    def term(cls, kind: Unit, alone: bool) -> Term:
        return neighbours.score_matching if kind.continuous else _each_neighbour(cls.of_log_ratio)


@register
@dataclasses.dataclass(frozen=True)
class PL(FlipRule):
    """Pseudo-likelihood."""

    name = "pl"
    of_log_ratio = staticmethod(jax.nn.softplus)

    @classmethod
    def defined(cls, machine: BoltzmannMachine) -> bool:
        """Whether the visible units have a closed form, hidden ones being independent given them."""
        kinds = machine.layer_units[0].segments(machine.sizes[0])
        return len(machine.sizes) == 1 or all(kind.all_values() is not None for kind, _ in kinds)

    @classmethod
    def term(cls, kind: Unit, alone: bool) -> Term:
        if alone:
            return neighbours.conditional
        if kind.all_values() is None:
            raise ValueError(
                f"got visible units of kind {kind.name!r} below a hidden layer; the pseudo-likelihood sums over all "
                "values of a unit, and there takes kinds of a finite number"
            )
        # - log p(x_i | the others) is the log of 1 plus all ratios.
        return neighbours.at_neighbours(lambda ratios: cls.of_log_ratio(jax.nn.logsumexp(ratios, axis=-1)))


@register
@dataclasses.dataclass(frozen=True)
class RatioMatching(FlipRule):
    """Ratio matching."""

    name = "ratio"
    of_log_ratio = staticmethod(lambda log_ratio: jax.nn.sigmoid(log_ratio) ** 2)

    @classmethod
    def term(cls, kind: Unit, alone: bool) -> Term:
        two_valued(kind, "ratio matching")
        return _each_neighbour(cls.of_log_ratio)


def flip_estimate(
    rule: str,
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    units: Integer[AnyArray, " num_units"] | None = None,
) -> Estimate:
    """Pseudo-likelihood, ratio matching or marginal MPF: 'pl', 'ratio' or 'mpf'.

    Args:
      rule: its name.
      machine: one layer, or two without weights inside the hidden one. MPF takes visible units of all kinds, on real
        ones score matching; pseudo-likelihood those of a finite number of values, and of any kind in a machine of one
        layer; ratio matching those of two values.
      visible: values of the visible units.
      units: numbers of visible units whose flips count, scaled up to all (an unbiased estimate); None: all.

    Raises:
      ValueError: another rule, a machine of another shape or of units for which the rule is not defined, states or
        units that do not fit it, or an empty batch.
    """
    known: dict[str, type[FlipRule]] = {kind.name: kind for kind in (MPF, PL, RatioMatching)}
    kind = known[checks.one_of("rule", rule, tuple(known))]
    kind.check(machine, f"rule {rule!r}")
    return Estimate(*kind.flow(machine, *_check_flips(machine, visible, units)), carry=())


def averaged_flow(
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    probabilities: Float[AnyArray, "batch n_1"],
    hidden_flips: bool = True,
    units: Integer[AnyArray, " num_units"] | None = None,
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """The probability-flow objective and its local gradient, averaged over hidden states in closed form.

    The expectation of `objective_and_gradient` over independent hidden bits with the given probabilities, which are
    held fixed, as sampled states are.

    Args:
      machine: two layers, without weights inside the hidden one.
      visible: values of the visible units.
      probabilities: of the hidden units' upper values, in [0, 1].
      hidden_flips: whether flips of hidden units count.
      units: distinct indices of the visible units whose flips count, scaled up to all; None: all.

    Raises:
      ValueError: a machine of another shape, states, probabilities or units that do not fit it, or an empty batch.
    """
    check_closed_form(machine, "the closed-form expectation over hidden states", layers=(2,))
    visible, units = _check_flips(machine, visible, units)
    probabilities = jnp.asarray(checks.probabilities("probabilities", probabilities))
    wanted = (visible.shape[0], machine.sizes[1])
    if probabilities.shape != wanted:
        raise ValueError(f"got probabilities of shape {probabilities.shape}; they are [batch, n_1], here {wanted}")
    checks.boolean("hidden_flips", hidden_flips)
    objective, gradient = _visible_flips(
        machine, visible, probabilities, jnp.exp, scale=0.5, through_hidden=False, units=units
    )
    if not hidden_flips:
        return objective, gradient
    # Of bits E[delta_j] = p_j exp(-z_j / 2) + (1 - p_j) exp(z_j / 2); a hidden unit's field has no other one in it.
    x = visible.astype(machine.biases[1].dtype)
    step = _kinds(machine)[1].step
    z = upward_field(machine, 1, x)
    down, up = probabilities * jnp.exp(-z * (step / 2)), (1 - probabilities) * jnp.exp(z * (step / 2))
    slopes = (up - down) * (step / 2)
    return objective + jnp.sum(up + down) / len(x), dataclasses.replace(
        gradient,
        biases=(gradient.biases[0], gradient.biases[1] + jnp.mean(slopes, axis=0)),
        weights=(jax.tree.map(jnp.add, gradient.weights[0], couplings.products(machine.weights[0], x, slopes)),),
    )


def summed_flow(
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    function: Callable[[Array], Array],
    units: Integer[AnyArray, " num_units"] | None = None,
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """Batch mean of sum_i function(log p(x with unit i flipped) / p(x)) and its gradient by the parameters.

    Of units with several neighbouring values the sum is over these, too.

    Args:
      machine: one layer, or two without weights inside the hidden one.
      visible: values of the visible units.
      function: elementwise and differentiable.
      units: distinct indices of the visible units whose flips count, scaled up to all; None: all.

    Raises:
      ValueError: a machine of another shape or with real visible units, states or units that do not fit it, or an
        empty batch.
    """
    check_summable(machine, "a rule on the free energy", layers=(1, 2))
    visible, units = _check_flips(machine, visible, units)
    if _all_two_valued(machine):
        return _two_valued_flow(machine, visible, function, units)

    def term(kind: Unit) -> Term:
        if kind.continuous:
            raise ValueError(
                f"got visible units of kind {kind.name!r}; a sum over flips takes values that are separate"
            )
        return _each_neighbour(function)

    return neighbours.flow(machine, visible, term, units)


def _each_neighbour(function: Callable[[Array], Array]) -> Term:
    """The sum over the neighbouring values of a function of each."""
    return neighbours.at_neighbours(lambda ratios: jnp.sum(function(ratios), axis=-1))


def _all_two_valued(machine: BoltzmannMachine) -> bool:
    return all(isinstance(unit, TwoValued) for unit in machine.layer_units)


def _two_valued_flow(machine, visible, function, units):
    if len(machine.sizes) == 1:
        return _fully_visible(machine, visible, function, units)
    probabilities = _kinds(machine)[1].probability(upward_field(machine, 1, visible))
    return _visible_flips(machine, visible, probabilities, function, scale=1.0, through_hidden=True, units=units)


def draw_units(stream: Stream, machine: BoltzmannMachine, num_units: int | None) -> Int[Array, " num_units"] | None:
    """A random choice of visible units for the argument `units`; None for None."""
    return None if num_units is None else permutation(stream, num_visible_units(machine))[:num_units]


def check_closed_form(machine: BoltzmannMachine, what: str, layers: tuple[int, ...], *, dense: bool = True) -> None:
    """Raises ValueError unless the machine has symmetric weights, layers as allowed, and independent hidden units.

    Units have two values, and the weights are matrices where `dense` ones are asked for.
    """
    check_summable(machine, what, layers, dense=dense)
    for unit in machine.layer_units:
        two_valued(unit, what)


def check_summable(machine: BoltzmannMachine, what: str, layers: tuple[int, ...], *, dense: bool = True) -> None:
    """`check_closed_form` for units of any kinds."""
    check_machine(machine)
    check_symmetric(machine, what)
    if dense:
        couplings.check_dense(machine.weights, what)
    if len(machine.sizes) not in layers or not machine.has_independent_hidden:
        inside = " with weights inside a hidden layer" if any(l is not None for l in machine.intra[1:]) else ""
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes}{inside}; {what} takes machines of "
            f"{' or '.join(str(n) for n in layers)} layers without weights inside the hidden one"
        )


def check_flips_per_step(flips_per_step: int | None, machine: BoltzmannMachine) -> None:
    """Raises ValueError for more flips than the machine has visible units."""
    if flips_per_step is not None:
        num_units = num_visible_units(machine)
        allowed = f"up to the {num_units} units of the layer whose flips it counts"
        checks.require(flips_per_step <= num_units, "flips_per_step", flips_per_step, allowed)


def _kinds(machine: BoltzmannMachine) -> tuple[TwoValued, ...]:
    return tuple(two_valued(unit, "a sum over flips") for unit in machine.layer_units)


def _visible_flips(machine, visible, probabilities, function, *, scale, through_hidden, units):
    """The objective and gradient of both quantities; `through_hidden`: p_j depends on the parameters."""
    b, w = machine.biases[0], couplings.dense(machine.weights[0])
    lower, upper = _kinds(machine)
    batch, (n_0, n_1) = visible.shape[0], w.shape
    x = visible.astype(b.dtype)
    fields = fields_inside(machine, x)
    if upper.low:
        fields = fields + couplings.down(w, jnp.full_like(probabilities, upper.low), b.dtype)
    # What a unit changes by when it flips.
    signs = 2 * lower.half_way(x, b.dtype)
    steps = scale * lower.step * upper.step
    p = probabilities
    chosen = jnp.arange(n_0) if units is None else units
    # The mean over chosen units, as many times as there are units: unbiased for the sum over all.
    weight = n_0 / (batch * len(chosen))

    def of_units(carry: tuple[Array, Array], some: Array):
        """Adds the flips of some units; what depends on the unit is returned, the rest carried."""
        total, by_hidden = carry
        s, rows = signs[:, some], w[some].astype(b.dtype)
        up, down = jnp.exp(steps * rows), jnp.exp(-steps * rows)
        factor = jnp.where(s[:, :, None] > 0, up[None], down[None])
        mixed = 1 + p[:, None] * (factor - 1)
        log_ratio = scale * s * fields[:, some] + jnp.sum(jnp.log(mixed), axis=2)
        value, pull = jax.vjp(function, log_ratio)
        (slope,) = pull(jnp.full_like(value, weight))
        # The probability of hidden unit j once the bit is flipped (half flipped, for the average).
        after = p[:, None] * factor / mixed
        if through_hidden:
            by_hidden += jnp.einsum("bi,bij->bj", slope, after) - jnp.sum(slope, axis=1)[:, None] * p
        return (total + weight * jnp.sum(value), by_hidden), (
            scale * slope * s,
            scale * upper.step * jnp.einsum("bi,bij->ij", slope * s, after),
        )

    carry = jnp.zeros((), b.dtype), jnp.zeros_like(p)
    size = max(1, min(len(chosen), neighbours.CHUNK_BYTES // (batch * n_1 * b.dtype.itemsize)))
    num_full, rest = divmod(len(chosen), size)
    full = chosen[: num_full * size].reshape(num_full, size)
    carry, (slopes, rows) = jax.lax.scan(of_units, carry, full)
    slopes = jnp.moveaxis(slopes, 1, 0).reshape(batch, -1)
    rows = rows.reshape(-1, n_1)
    if rest:
        carry, (last_slopes, last_rows) = of_units(carry, chosen[num_full * size :])
        slopes, rows = jnp.concatenate([slopes, last_slopes], axis=1), jnp.concatenate([rows, last_rows])
    objective, by_hidden = carry
    if units is not None:
        slopes = jnp.zeros_like(x).at[:, units].set(slopes)
        rows = jnp.zeros((n_0, n_1), b.dtype).at[units].set(rows)
    if upper.low:
        rows += upper.low * jnp.sum(slopes, axis=0)[:, None]
    if through_hidden:
        by_hidden = by_hidden * upper.step
        rows += batch * couplings.products(w, x, by_hidden)
    return objective, dataclasses.replace(
        machine,
        biases=(jnp.sum(slopes, axis=0), jnp.sum(by_hidden, axis=0)),
        weights=(rows,),
        intra=(inside_gradient(machine, x, slopes), None),
    )


def _fully_visible(machine, visible, function, units):
    """As `_visible_flips` for a machine without hidden units."""
    (b,), (unit,) = machine.biases, _kinds(machine)
    x = visible.astype(b.dtype)
    signs = 2 * unit.half_way(x, b.dtype)
    counted = jnp.ones_like(b) if units is None else jnp.zeros_like(b).at[units].set(len(b) / len(units))
    value, pull = jax.vjp(function, signs * fields_inside(machine, x))
    slopes = pull(jnp.broadcast_to(counted[None] / len(x), x.shape))[0] * signs
    return jnp.sum(value * counted[None]) / len(x), dataclasses.replace(
        machine, biases=(jnp.sum(slopes, axis=0),), intra=(inside_gradient(machine, x, slopes),)
    )


def _check_flips(
    machine: BoltzmannMachine, visible: Shaped[AnyArray, "batch n_0"], units: Integer[AnyArray, " num_units"] | None
) -> tuple[Shaped[Array, "batch n_0"], Integer[Array, " num_units"] | None]:
    """The states and the units as arrays; raises ValueError unless both fit the machine."""
    n_0 = machine.sizes[0]
    checks.array("visible states", visible, f"an array [batch, {n_0}] of values of the units")
    if jnp.ndim(visible) != 2 or jnp.shape(visible)[1] != n_0:
        raise ValueError(f"got visible states of shape {jnp.shape(visible)}; the machine takes [batch, {n_0}]")
    if jnp.shape(visible)[0] == 0:
        raise ValueError("got an empty batch; a mean over states takes at least one state")
    machine.layer_units[0].check("visible states", visible)
    if units is not None:
        num_units = num_visible_units(machine)
        allowed = f"distinct indices of visible units, from 0 to {num_units - 1}, at least one"
        if not checks.is_traced(units):
            # By NumPy, which a trace around the call does not see.
            indices = np.asarray(units)
            fits = indices.ndim == 1 and indices.size > 0 and indices.dtype.kind in "iu"
            fits = fits and 0 <= indices.min() and indices.max() < num_units and len(np.unique(indices)) == indices.size
            checks.require(fits, "units", units, allowed)
        units = jnp.asarray(units)
        fits = units.ndim == 1 and units.size > 0 and jnp.issubdtype(units.dtype, jnp.integer)
        checks.require(fits, "units", units, allowed)
    return jnp.asarray(visible), units
