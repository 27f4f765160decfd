"""Groups of settings: frozen dataclasses whose fields state default, meaning and range once.

    @dataclasses.dataclass(frozen=True)
    class Adam(Settings):
        learning_rate: float = setting(1e-3, "Size of a step", above=0)

A value is checked, and NumPy's numbers become Python's, when a group is made; `described` is what the settings look
like as JSON. Flags, --help and the sentences of errors are derived from the same fields (`vpf_jax.app.command`). Types:
int, float, bool, str, tuples of int, float or str, each also as "X | None", where None passes. Fields of other types,
such as a rule inside the settings of training, may stand beside them and are not looked at here.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from vpf_jax import checks
from vpf_jax.checks import SettingError

_KEY = "vpf_jax.setting"
_SWITCH = {"on": True, "off": False}
# From what is typed.
_READ: dict[type, Callable[[str], Any]] = {int: int, float: float, str: str, bool: _SWITCH.__getitem__}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a field beside its name, type and default."""

    help: str
    """Its meaning, without the range, which `Setting.told` adds."""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    other_than: float | None = None
    choices: Collection[str] | None = None
    """Of a string, or of the entries of a tuple of strings."""
    multiple_of: int = 1
    distinct: bool = True
    """Whether the entries of a tuple differ from one another."""
    increasing: bool = False
    """Whether the entries of a tuple increase."""
    fewest: int = 1
    """Entries of a tuple."""
    longest: int | None = None
    """Entries of a tuple at most."""
    flag: str | None = None
    """Name of the flag, where it is not that of the field."""


def setting(default: Any, help: str, **known: Any) -> Any:
    """A field of a `Settings` dataclass; the keywords are the fields of `Setting`."""
    return dataclasses.field(default=default, metadata={_KEY: Setting(help, **known)})


def like(group: type, name: str, **changed: Any) -> Any:
    """A field with the meaning and range of another group's, and its default unless another one is given."""
    (field,) = (field for field in dataclasses.fields(group) if field.name == name)
    default = changed.pop("default", field.default)
    return dataclasses.field(default=default, metadata={_KEY: dataclasses.replace(field.metadata[_KEY], **changed)})


class Settings:
    """Base of a frozen dataclass of settings."""

    name: ClassVar[str] = ""
    """What `described` calls the group, of those that are one of several kinds."""

    def __post_init__(self) -> None:
        """Checks and normalises every value.

        Raises:
          SettingError: a value of another type, or outside its range.
        """
        group: Any = type(self)
        for name, option in options(group).items():
            object.__setattr__(self, name, option.value(getattr(self, name)))


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting with its name and type: all that a flag has to know."""

    name: str
    default: Any
    kind: type
    """int, float, bool or str: of the value, or of each entry of a tuple."""
    many: bool
    """Whether it is a tuple."""
    optional: bool
    """Whether None passes."""
    setting: Setting

    @property
    def flag(self) -> str:
        """Name of the flag."""
        return self.setting.flag or self.name

    @property
    def needed(self) -> bool:
        """Whether it has to be given: its default is the empty text, which is no value."""
        return self.default == ""

    @property
    def allowed(self) -> str:
        """The range in words, as errors and --help say it."""
        s, plural = self.setting, self.many
        if self.kind is bool:
            return "True or False"
        if s.choices is not None:
            joined = ", ".join(s.choices)
            return (
                f"some of {joined}, each once"
                if plural and s.distinct
                else f"{'some' if plural else 'one'} of {joined}"
            )
        if self.kind is str:
            return "words separated by commas" if plural else "text that is not empty"
        return _numbers(s, self.kind, plural)

    @property
    def told(self) -> str:
        """Meaning and range."""
        free = self.setting.choices is None and self.kind is str
        return f"{self.setting.help}." if free else f"{self.setting.help}: {self.typed}."

    @property
    def typed(self) -> str:
        """The range, as one types it."""
        return "on or off" if self.kind is bool else self.allowed

    def read(self, text: str) -> Any:
        """The value of what a flag was given; raises SettingError, which quotes the text."""
        parts = [part.strip() for part in text.split(",")] if self.many and text else [text][: not self.many]
        try:
            found = [_READ[self.kind](part) for part in parts]
            return self.value(tuple(found) if self.many else found[0])
        except (ValueError, KeyError):
            raise SettingError(self.flag, text, self.typed) from None

    def value(self, given: Any) -> Any:
        """The value in Python's own types; raises SettingError for one that is not allowed."""
        if given is None and self.optional:
            return None
        if not self.many:
            found = self._one(given)
            self._require(found is not None, given)
            return found
        self._require(isinstance(given, Sequence) and not isinstance(given, str | bytes), given)
        found = tuple(self._one(entry) for entry in given)
        fits = None not in found and len(found) >= self.setting.fewest
        fits = fits and (self.setting.longest is None or len(found) <= self.setting.longest)
        fits = fits and not (self.setting.distinct and len(set(found)) < len(found))
        fits = fits and not (self.setting.increasing and list(found) != sorted(found))
        self._require(fits, given)
        return found

    def _one(self, given: Any) -> Any:
        """The value or entry, None where it is not allowed."""
        s = self.setting
        if self.kind is str:
            known = isinstance(given, str) and (given in s.choices if s.choices is not None else given != "")
            return given if known else None
        if self.kind is bool:
            return bool(given) if checks.is_boolean(given) else None
        found = checks.as_integer(given) if self.kind is int else checks.as_float(given)
        if found is None or not math.isfinite(found) or (self.kind is int and found % s.multiple_of):
            return None
        inside = (s.least is None or found >= s.least) and (s.most is None or found <= s.most)
        inside = inside and (s.above is None or found > s.above) and (s.below is None or found < s.below)
        inside = inside and found != s.other_than
        return found if inside else None

    def _require(self, holds: bool, given: Any) -> None:
        if not holds:
            raise SettingError(self.name, given, self.allowed)


@functools.cache
def options(group: type) -> Mapping[str, Option]:
    """The settings of a group, by name, in the order of its fields."""
    hints = typing.get_type_hints(group)
    found = {}
    for field in dataclasses.fields(group):
        if _KEY in field.metadata:
            kind, many, optional = _kind(hints[field.name])
            found[field.name] = Option(field.name, field.default, kind, many, optional, field.metadata[_KEY])
    return types.MappingProxyType(found)


def refuse_given(group: Any, names: Iterable[str], why: str) -> None:
    """Raises SettingError for the first of the settings that differs from its default, as nothing here asks for it.

    Args:
      group: the settings.
      names: of those that the others make meaningless.
      why: ends the sentence, such as "planted synapses have no images".
    """
    kind: Any = type(group)
    for name in names:
        option, value = options(kind)[name], getattr(group, name)
        if value != option.default:
            raise SettingError(option.flag, value, f"nothing, as {why}")


def described(group: Any, changed: bool = False) -> dict[str, Any]:
    """The settings as values that JSON can hold; "kind" names a group that is one of several.

    Args:
      group: the settings.
      changed: whether those at their defaults are left out.
    """
    found = {"kind": group.name} if group.name else {}
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if changed and value == field.default:
            continue
        if isinstance(value, Settings):
            value = described(value, changed)
        elif isinstance(value, tuple):
            value = [described(entry, changed) if isinstance(entry, Settings) else entry for entry in value]
        found[field.name] = value
    return found


def typed(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _kind(hint: Any) -> tuple[type, bool, bool]:
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    many = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if many else hint), many, optional


def _numbers(s: Setting, kind: type, plural: bool) -> str:
    """Such as "an integer of at least 1", "positive finite numbers"."""
    noun = "integer" if kind is int else "finite number"
    if s.multiple_of > 1:
        noun = "even integer" if s.multiple_of == 2 else f"multiple of {s.multiple_of}"
    positive = s.above == 0 or (kind is int and s.least == 1)
    words = ["distinct"] if plural and s.distinct and not s.increasing else []
    words += ["increasing"] if plural and s.increasing else []
    words += ["positive"] if positive and (plural or kind is float) else []
    text = " ".join([*words, noun])
    text = f"{text}s" if plural else f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
    bounds = []
    if s.least is not None and s.most is not None:
        bounds.append(f"from {s.least:g} to {s.most:g}" if kind is float else f"from {s.least} to {s.most}")
    else:
        if s.least is not None and not (positive and plural):
            bounds.append(f"of at least {s.least}")
        if s.most is not None:
            bounds.append(f"at most {s.most}")
    if s.above is not None and not positive:
        bounds.append(f"above {s.above}")
    if s.below is not None:
        bounds.append(f"below {s.below}")
    if s.other_than is not None:
        bounds.append(f"other than {s.other_than}")
    text = " ".join([text, " and ".join(bounds)]).strip()
    if s.longest is not None:
        return f"{s.fewest if s.fewest == s.longest else f'{s.fewest} to {s.longest}'} {text}"
    return f"{s.fewest} or more {text}" if plural and s.fewest > 1 else text
