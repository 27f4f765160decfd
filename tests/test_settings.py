"""Groups of settings: what is taken, what is refused and how it is said, as values and as typed."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from vpf_jax.checks import SettingError
from vpf_jax.settings import Settings, described, like, options, refuse_given, setting, typed


@dataclasses.dataclass(frozen=True)
class Part(Settings):
    name = "part"
    rate: float = setting(0.5, "How fast", above=0, most=1)


@dataclasses.dataclass(frozen=True)
class Group(Settings):
    count: int = setting(3, "How many", least=1, flag="number")
    rate: float = like(Part, "rate", default=0.25)
    beta: float = setting(1.0, "Strength", other_than=0)
    share: float = setting(0.0, "Part of it", least=0, below=1)
    kind: str = setting("a", "Which", choices=("a", "b"))
    some: tuple[str, ...] = setting(("a",), "Which ones", choices=("a", "b"))
    sizes: tuple[int, ...] = setting((4, 4), "How large", least=1, fewest=2, longest=3, distinct=False)
    times: tuple[float, ...] = setting((1.0, 2.0), "When", above=0, increasing=True)
    even: int = setting(2, "Bins", least=2, multiple_of=2)
    switch: bool = setting(True, "Whether")
    folder: str | None = setting(None, "Where")
    bound: float | None = setting(None, "How much", above=0)
    part: Part = Part()


OPTIONS = options(Group)


@pytest.mark.parametrize(
    ("name", "given", "held"),
    [
        ("count", np.int64(5), 5),
        ("rate", np.float32(0.5), 0.5),
        ("rate", 1, 1.0),
        ("beta", jnp.float32(-2.0), -2.0),
        ("switch", np.bool_(False), False),
        ("some", ["b", "a"], ("b", "a")),
        ("sizes", [5, np.int32(5)], (5, 5)),
        ("folder", None, None),
        ("bound", 2, 2.0),
    ],
)
def test_values_become_python_s_own(name, given, held):
    found = getattr(Group(**{name: given}), name)
    assert found == held
    assert type(found) is type(held)


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("count", 0, "an integer of at least 1"),
        ("count", 2.0, "an integer of at least 1"),
        ("count", True, "an integer of at least 1"),
        ("count", None, "an integer of at least 1"),
        ("rate", 0, "a positive finite number at most 1"),
        ("rate", math.nan, "a positive finite number at most 1"),
        ("rate", "0.5", "a positive finite number at most 1"),
        ("beta", 0.0, "a finite number other than 0"),
        ("beta", math.inf, "a finite number other than 0"),
        ("share", 1, "a finite number of at least 0 and below 1"),
        ("kind", "c", "one of a, b"),
        ("kind", 3, "one of a, b"),
        ("some", (), "some of a, b, each once"),
        ("some", ("a", "a"), "some of a, b, each once"),
        ("some", "a", "some of a, b, each once"),
        ("sizes", (4,), "2 to 3 positive integers"),
        ("sizes", (4, 4, 4, 4), "2 to 3 positive integers"),
        ("sizes", (4, 0), "2 to 3 positive integers"),
        ("times", (2.0, 1.0), "increasing positive finite numbers"),
        ("times", (1.0, 1.0), "increasing positive finite numbers"),
        ("even", 3, "an even integer of at least 2"),
        ("switch", 1, "True or False"),
        ("folder", "", "text that is not empty"),
        ("bound", -1.0, "a positive finite number"),
    ],
)
def test_what_is_refused_says_what_was_given_and_what_is_allowed(name, given, allowed):
    with pytest.raises(SettingError, match=rf"^got {name}=.*; it takes {allowed}$") as caught:
        Group(**{name: given})
    error = caught.value
    assert (error.name, error.allowed) == (name, allowed)
    assert error.given is given or error.given == given


@pytest.mark.parametrize(
    ("name", "text", "held"),
    [
        ("count", "12", 12),
        ("rate", "1e-3", 1e-3),
        ("some", "b, a", ("b", "a")),
        ("sizes", "5,6", (5, 6)),
        ("switch", "off", False),
        ("folder", "runs/one", "runs/one"),
        ("bound", "3", 3.0),
    ],
)
def test_what_is_typed_is_read_and_typed_again(name, text, held):
    found = OPTIONS[name].read(text)
    assert found == held
    assert OPTIONS[name].read(typed(found)) == held


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("count", "1.5", "an integer of at least 1"),
        ("count", "", "an integer of at least 1"),
        ("rate", "1e400", "a positive finite number at most 1"),
        ("sizes", "", "2 to 3 positive integers"),
        ("sizes", "5,,5", "2 to 3 positive integers"),
        ("some", "", "some of a, b, each once"),
        ("switch", "yes", "on or off"),
        ("folder", "", "text that is not empty"),
    ],
)
def test_what_is_typed_wrongly_is_quoted_as_it_was_typed(name, text, allowed):
    with pytest.raises(SettingError) as caught:
        OPTIONS[name].read(text)
    # By the name of the flag.
    assert (caught.value.name, caught.value.given, caught.value.allowed) == (OPTIONS[name].flag, text, allowed)


def test_help_holds_meaning_and_range():
    assert OPTIONS["count"].told == "How many: an integer of at least 1."
    assert OPTIONS["switch"].told == "Whether: on or off."
    assert OPTIONS["folder"].told == "Where."
    assert OPTIONS["count"].flag == "number"
    assert OPTIONS["rate"].default == 0.25
    assert OPTIONS["rate"].told == "How fast: a positive finite number at most 1."
    assert "part" not in OPTIONS


def test_what_others_make_meaningless_is_refused_unless_it_is_the_default():
    refuse_given(Group(), ["count", "folder"], "there are none")
    with pytest.raises(SettingError, match=r"^got number=4; it takes nothing, as there are none$"):
        refuse_given(Group(count=4), ["folder", "count"], "there are none")


def test_described_is_what_json_can_hold():
    found = described(Group(folder="here"))
    assert found["sizes"] == [4, 4]
    assert found["folder"] == "here"
    assert found["part"] == {"kind": "part", "rate": 0.5}
    assert "kind" in found
    assert found["kind"] == "a"
