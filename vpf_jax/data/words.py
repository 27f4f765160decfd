"""Words as categories: the different ones of a column, in their order, stand for the codes 0, 1, ... of that variable.

Columns with as many words each are of categorical units, others of groups of them, so that no unit has a value without
a word. A model keeps the words (`Dataset.categories`), and reads and writes tables by them. Not here: tables
(`tables`), letters (`fasta`).
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer, Shaped

from vpf_jax.data.stored import Contents, Stored, refuse
from vpf_jax.units import Categorical, Groups, Unit

# The words of each variable, in the order of their codes.
Categories = tuple[tuple[str, ...], ...]
# Of a variable; whoever writes more has text, or numbers of something.
MOST_WORDS = 255
TAKES = f"two to {MOST_WORDS} different words in a column"


def coded(cells: Shaped[np.ndarray, "n variables"]) -> tuple[Float[np.ndarray, "n variables"], Categories]:
    """Codes of words, NaN where a cell is empty, and the words of each column."""
    codes, categories = np.full(cells.shape, np.nan, np.float32), []
    for column in range(cells.shape[1]):
        there = cells[:, column] != ""
        words, codes[there, column] = np.unique(cells[there, column], return_inverse=True)
        categories.append(tuple(str(word) for word in words))
    return codes, tuple(categories)


def recoded(source: str, stored: Stored, categories: Categories) -> Stored:
    """The same words by the codes of others, such as those of a model.

    Raises:
      DatasetError: a word that has none, or another number of variables.
    """
    if len(stored.categories) != len(categories):
        told = f"with {len(stored.categories)} variables per example"
        refuse(source, told, f"{len(categories)}, words of which have codes")
    values = np.array(stored.values)
    for column, (own, others) in enumerate(zip(stored.categories, categories, strict=True)):
        for strange in (word for word in own if word not in others):
            row = int(np.argmax(stored.values[:, column] == own.index(strange)))
            told = f"whose {stored.row(row)} holds {_cut(strange)!r} in {stored.variable(column)}"
            refuse(source, told, f"{_listed(others)} there")
        there = ~np.isnan(values[:, column])
        codes = np.array([others.index(word) for word in own], np.float32)
        values[there, column] = codes[values[there, column].astype(np.intp)]
    return stored.having(values=values, categories=categories)


def check(contents: Contents) -> None:
    """Refuses columns of which no unit can be made: without a word, with a single one, or with too many."""
    for stored in contents.parts.values():
        for column, words in enumerate(stored.categories):
            if not 2 <= len(words) <= MOST_WORDS:
                held = {0: "missing entries alone", 1: f"no other word than {_cut(words[0])!r}" if words else ""}
                told = held.get(len(words), f"{len(words)} different words")
                refuse(contents.source, f"whose {stored.variable(column)} holds {told}", TAKES)


def unit_of(categories: Categories) -> Unit:
    """What words are states of."""
    groups = [(Categorical(q), q * len(list(some))) for q, some in itertools.groupby(map(len, categories))]
    return groups[0][0] if len(groups) == 1 else Groups(tuple(groups))


def values_of_each(unit: Unit, num_variables: int) -> Int[np.ndarray, " variables"] | None:
    """How many values each variable has; None where not all units are categorical."""
    if isinstance(unit, Categorical):
        return np.full(num_variables, unit.q)
    if isinstance(unit, Groups) and all(isinstance(kind, Categorical) for kind, _ in unit.groups):
        return np.concatenate([np.full(number // kind.width, kind.width) for kind, number in unit.groups])
    return None


def written(codes: Integer[np.ndarray, "n variables"], categories: Categories) -> Shaped[np.ndarray, "n variables"]:
    """The words of codes."""
    columns = [np.array(words)[column] for words, column in zip(categories, codes.T, strict=True)]
    return np.stack([column.astype(object) for column in columns], axis=1)


def told_of(categories: Sequence[Sequence[str]]) -> str:
    """How many there are, in words."""
    numbers = sorted({len(words) for words in categories})
    return f"words, {numbers[0]}{f' to {numbers[-1]}' if len(numbers) > 1 else ''} in a column"


def _listed(words: Sequence[str]) -> str:
    shown = [_cut(word) for word in words[:8]]
    return ", ".join(shown) + (f" or another of {len(words)} words" if len(words) > len(shown) else "")


def _cut(word: str) -> str:
    return word if len(word) <= 20 else f"{word[:17]}..."
