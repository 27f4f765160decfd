"""What a rule is, and the table of rules.

A rule says how a machine changes on a minibatch of completed states. It is a frozen dataclass of its own options, so
that an option which does not belong to it cannot be given, and is known by name once it is registered:

    @rules.register
    @dataclasses.dataclass(frozen=True)
    class MyRule(rules.Rule):
        name = "mine"
        strength: float = setting(1.0, "Of what it does", above=0)

        def estimate(self, stream, machine, inference, states, carry): ...

Training (`vpf_jax.train`) knows rules by this protocol alone. Not here: the rules themselves, a file per family.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple, TypeVar

from jaxtyping import Array, Float

from vpf_jax import checks
from vpf_jax.exporting import exported
from vpf_jax.machine import BoltzmannMachine, State
from vpf_jax.sample.streams import Stream
from vpf_jax.settings import Settings, options

ESTEPS = ("epoch", "minibatch")


@exported("vpf_jax.Estimate")
class Estimate(NamedTuple):
    """What a rule says of a minibatch."""

    objective: Float[Array, ""]
    """Mean over the batch of what the rule minimises. Contrastive divergence minimises nothing of its own: there the
    mean (free) energy of the data minus that of the chains."""
    gradient: BoltzmannMachine
    """In the shape of the machine; of symmetric intra-layer weights the derivative by one parameter per unordered pair
    of units, at both of its places."""
    carry: Any
    """What the next minibatch goes on from, such as the states of persistent chains; () where there is nothing."""

    @property
    def states(self) -> State:
        """Of rules with chains: where these have arrived, one array [num_chains, n_l] per layer."""
        return self.carry


@dataclasses.dataclass(frozen=True)
class Rule(Settings, abc.ABC):
    """A learning rule with its options."""

    name: ClassVar[str]

    @property
    def scale(self) -> float:
        """Of the objective against the weight decay in the loss."""
        return 1.0

    @property
    def estep_per_epoch(self) -> bool:
        """Whether hidden states are sampled for the whole epoch at its start, and not before each minibatch."""
        return False

    @property
    def keeps_chains(self) -> bool:
        """Whether something of a step is where the next one starts, such as persistent chains."""
        return False

    def accepts(self, machine: BoltzmannMachine) -> None:
        """Raises ValueError, in one sentence, for a machine that the rule does not take; any by default."""

    def start(self, stream: Stream, machine: BoltzmannMachine, states: State) -> Any:
        """What the first minibatch goes on from: a pytree of arrays, () by default.

        Args:
          stream: random numbers.
          machine: before the first step.
          states: as many states as a minibatch has, completed data, or values drawn without fields where there are no
            data yet.
        """
        return ()

    @abc.abstractmethod
    def estimate(
        self, stream: Stream, machine: BoltzmannMachine, inference: BoltzmannMachine, states: State, carry: Any
    ) -> Estimate:
        """Objective and gradient on a minibatch.

        Args:
          stream: random numbers.
          machine: the parameters by which the gradient is taken.
          inference: those with which the hidden states were sampled: the same, or the epoch's first ones.
          states: completed states, one array [batch, n_l] per layer.
          carry: of `start`, or of the minibatch before.
        """


AnyRule = TypeVar("AnyRule", bound=type[Rule])
_registered: dict[str, type[Rule]] = {}


def register(rule: AnyRule) -> AnyRule:
    """Makes a class of rules known by its name, as flags and files give it; returns it.

    Raises:
      ValueError: no class of rules, one without a name, or a name that another class has.
    """
    fits = isinstance(rule, type) and issubclass(rule, Rule) and dataclasses.is_dataclass(rule)
    checks.require(fits and getattr(rule, "name", ""), "rule", rule, "a dataclass derived from Rule, with a name")
    known = _registered.setdefault(rule.name, rule)
    same = (known.__module__, known.__qualname__) == (rule.__module__, rule.__qualname__)
    checks.require(same, "rule", rule, f"a name other than {rule.name!r}, which is taken")
    _registered[rule.name] = rule
    return rule


def names() -> tuple[str, ...]:
    """Of the registered rules."""
    return tuple(_registered)


def get(name: str) -> type[Rule]:
    """The registered class of this name; ValueError for another name."""
    return _registered[checks.one_of("rule", name, names())]


def make(name: str, **given: Any) -> Rule:
    """The rule of this name with these options.

    Raises:
      ValueError: another name, an option that the rule does not have, or a value that it does not take.
    """
    rule = get(name)
    for option in given:
        if option not in options(rule):
            own = ", ".join(options(rule)) or "none"
            raise checks.SettingError(option, given[option], f"nothing with rule={name}, whose options are: {own}")
    return rule(**given)
