"""Aligned sequences in FASTA: proteins, DNA or RNA, with gaps, as categories from 0.

The alphabet is the first of DNA, RNA and proteins that has all letters; small letters count as large ones, `.` as the
gap `-`, which is a value of its own. Letters that stand for several (N of DNA, B, J, O, U, X and Z of proteins) count
as gaps, too. Not here: states of units (`values`).
"""

import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from vpf_jax.data.base import fault
from vpf_jax.data.stored import WHOLE, Contents, Stored, refuse

# Letters in their order, the gap first, and those that count as gaps.
ALPHABETS = {
    "DNA": ("-ACGT", "NRYSWKMBDHV"),
    "RNA": ("-ACGU", "NRYSWKMBDHV"),
    "proteins": ("-ACDEFGHIKLMNPQRSTVWY", "BJOUXZ*"),
}
# In a table of codes, of letters that have none.
NO_CODE = 255
_TAKES = "aligned sequences of proteins, DNA or RNA, each after a line that starts with >"


@contextlib.contextmanager
def read_fasta(path: Path, array: str | None) -> Iterator[Contents]:
    """The sequences of one alignment."""
    if array is not None:
        refuse(path, f"which is one alignment and has no array {array}", "no --array")
    try:
        with _open(path) as file:
            sequences = _sequences(path, file)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        told = "is no text" if isinstance(error, UnicodeDecodeError) else fault(error)
        refuse(path, f"which {told}", _TAKES)
    if not sequences:
        refuse(path, "which is empty", _TAKES)
    lines = np.array([line for line, _, _ in sequences])
    length = len(sequences[0][2])
    for line, name, letters in sequences:
        if len(letters) != length or not letters:
            told = f"whose sequence {name} (line {line}) has {len(letters)} letters and the first {length}"
            refuse(path, told, _TAKES)
    order, _ = ALPHABETS[_alphabet(path, sequences)]
    joined = np.frombuffer("".join(letters for _, _, letters in sequences).encode(), np.uint8)
    states = joined.reshape(len(sequences), length)
    yield Contents(str(path), {WHOLE: Stored(states, "alignment", lines=lines, alphabet=order)})


def codes(alphabet: str) -> UInt8[np.ndarray, " 256"]:
    """The code of each ASCII letter: its place in the alphabet, of what counts as a gap 0, of others `NO_CODE`."""
    found = np.full(256, NO_CODE, np.uint8)
    gaps = "".join(gaps for order, gaps in ALPHABETS.values() if order == alphabet)
    found[np.frombuffer(gaps.encode(), np.uint8)] = 0
    found[np.frombuffer(alphabet.encode(), np.uint8)] = np.arange(len(alphabet))
    return found


def told_of(alphabet: str) -> str:
    """The alphabet in words."""
    known = (name for name, (order, _) in ALPHABETS.items() if order == alphabet)
    return f"letters of {next(known, alphabet)}, {len(alphabet)} with the gap"


def as_fasta(states: Integer[np.ndarray, "n length"], alphabet: str) -> str:
    """Sequences of codes as the text of a FASTA file, named by their numbers from 0."""
    letters = np.frombuffer(alphabet.encode(), np.uint8)[states]
    return "".join(f">{number}\n{row.tobytes().decode()}\n" for number, row in enumerate(letters))


def _open(path: Path) -> io.TextIOWrapper:
    return gzip.open(path, "rt", encoding="ascii") if path.suffix.lower() == ".gz" else path.open(encoding="ascii")


def _sequences(path: Path, file: io.TextIOWrapper) -> list[tuple[int, str, str]]:
    """Line, name and letters of each sequence."""
    found: list[tuple[int, str, list[str]]] = []
    for line, text in enumerate(map(str.strip, file), 1):
        if text.startswith(">"):
            found.append((line, (text[1:].split() or ["without a name"])[0], []))
        elif not text or text.startswith(";"):
            continue
        elif not found:
            refuse(path, f"whose line {line} comes before the first line that starts with >", _TAKES)
        else:
            found[-1][2].append(text.upper().replace(".", "-"))
    return [(line, name, "".join(letters)) for line, name, letters in found]


def _alphabet(path: Path, sequences: list[tuple[int, str, str]]) -> str:
    used = set().union(*(letters for _, _, letters in sequences))
    for name, (order, gaps) in ALPHABETS.items():
        if used <= set(order + gaps):
            return name
    known = set("".join(order + gaps for order, gaps in ALPHABETS.values()))
    for line, name, letters in sequences:
        if strange := [letter for letter in letters if letter not in known]:
            refuse(path, f"whose sequence {name} (line {line}) holds {strange[0]!r}", _TAKES)
    refuse(path, f"whose letters are {''.join(sorted(used))}", _TAKES)
