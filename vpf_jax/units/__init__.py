"""What a neuron is: one file per kind, and the table of kinds in which they are known by name.

    binary, spin          two values: {0, 1}, the paper's and the default, and {-1, +1}
    categorical(q)        one of q values, as a one-hot vector of q entries
    gaussian              real numbers with a precision that is learnt; `NORMAL` with precision 1
    rectified             real numbers of at least 0
    count                 0, 1, 2, ...
    groups(...)           several kinds side by side in one layer

A kind of one's own is a class derived from `Unit` and registered from any file. Not here: fields (`energy`), weights
(`couplings`).
"""

from vpf_jax.units.base import Unit, get, names, register, register_family
from vpf_jax.units.categorical import Categorical
from vpf_jax.units.count import COUNT, Count
from vpf_jax.units.gaussian import GAUSSIAN, NORMAL, Gaussian
from vpf_jax.units.groups import Groups
from vpf_jax.units.rectified import RECTIFIED, Rectified
from vpf_jax.units.two_valued import BINARY, SPIN, TwoValued, two_valued

__all__ = [
    "BINARY",
    "COUNT",
    "GAUSSIAN",
    "NORMAL",
    "RECTIFIED",
    "SPIN",
    "Categorical",
    "Count",
    "Gaussian",
    "Groups",
    "Rectified",
    "TwoValued",
    "Unit",
    "get",
    "names",
    "register",
    "register_family",
    "two_valued",
]
