"""Recordings of planted assemblies, as large as one likes, written to disk in parts.

A neuron fires in a bin with a background probability, and with a higher one where an assembly that it belongs to is
active; in the log odds each further active assembly adds the same. Assemblies are random sets of neurons of one size,
and may share some; each is active in a bin independently of all others. Parts are drawn one by one from streams of
their own, so that they are the same whatever is in memory. Not here: small machines whose law is a sum (`planted`).
"""

import dataclasses
import io
import json
import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from vpf_jax import atomic
from vpf_jax.data.base import DatasetError
from vpf_jax.settings import Settings, setting

# Bins of a file.
PART = 5000
# Numbers that are drawn at a time.
_PIECE = 2**23
_TOLD = "planted.json"


@dataclasses.dataclass(frozen=True)
class Recording(Settings):
    """What is planted."""

    neurons: int = setting(40_000, "Neurons of the recording", least=2)
    bins: int = setting(100_000, "Time bins of the recording", least=1)
    assemblies: int = setting(200, "Planted assemblies", least=1)
    members: int = setting(300, "Neurons of an assembly", least=1)
    active: float = setting(0.03, "Probability that an assembly is active in a bin", above=0, below=1)
    background: float = setting(0.02, "Probability that a neuron fires without an active assembly", above=0, below=1)
    firing: float = setting(0.3, "Probability that it fires with one", above=0, below=1)
    seed: int = setting(0, "Seed of the recording", least=0, most=2**32 - 1)

    def membership(self) -> Bool[np.ndarray, "assemblies neurons"]:
        """Which neurons belong to which assembly.

        Raises:
          ValueError: more members than neurons.
        """
        if self.members > self.neurons:
            raise ValueError(f"got {self.members} members of {self.neurons} neurons; an assembly has at most all")
        rng = np.random.default_rng([self.seed, 0])
        found = np.zeros((self.assemblies, self.neurons), bool)
        for row in found:
            row[rng.choice(self.neurons, self.members, replace=False)] = True
        return found

    def activity(self, part: int) -> Bool[np.ndarray, "bins assemblies"]:
        """Which assemblies are active in each bin of a part, counted from 0."""
        count = min(PART, self.bins - PART * part)
        return np.random.default_rng([self.seed, 1, part]).random((count, self.assemblies)) < self.active

    def spikes(self, part: int) -> UInt8[np.ndarray, "bins neurons"]:
        """Zeros and ones of a part."""
        rest = math.log(self.background / (1 - self.background))
        step = math.log(self.firing / (1 - self.firing)) - rest
        activity, members = self.activity(part).astype(np.float32), self.membership().astype(np.float32)
        rng = np.random.default_rng([self.seed, 2, part])
        found = np.empty((len(activity), self.neurons), np.uint8)
        # A piece at a time, so that no array beside the result is large.
        piece = max(1, _PIECE // self.neurons)
        for start in range(0, len(found), piece):
            fields = rest + step * (activity[start : start + piece] @ members)
            found[start : start + piece] = rng.random(fields.shape, np.float32) < 1 / (1 + np.exp(-fields))
        return found

    @property
    def parts(self) -> int:
        """Number of files."""
        return -(-self.bins // PART)

    def write(self, folder: str | os.PathLike[str], part: int) -> Path:
        """Writes the file of a part where it is not there yet, whole or not at all.

        Raises:
          DatasetError: a folder with another recording.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told, wanted = folder / _TOLD, json.dumps(dataclasses.asdict(self), indent=1)
        if told.exists() and told.read_text() != wanted:
            raise DatasetError(f"got {folder}, which holds another recording ({told.name}); it takes an empty folder")
        atomic.write_bytes(told, wanted.encode())
        path = folder / f"bins-{PART * part:09d}.npy"
        if not path.exists():
            content = io.BytesIO()
            np.save(content, self.spikes(part))
            atomic.write_bytes(path, content.getvalue())
        return path
