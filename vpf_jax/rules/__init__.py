"""How a synapse learns: one file per family of rules, and the table of rules in which they are known by name.

A rule of one's own is a class derived from `Rule` and registered from any file. Not here: the loop (`vpf_jax.train`).
"""

from vpf_jax.rules.base import Estimate, Rule, get, make, names, register
from vpf_jax.rules.chains import CD, PCD
from vpf_jax.rules.flips import MPF, PL, RatioMatching
from vpf_jax.rules.tethered import Tethered
from vpf_jax.rules.vpf import VPF

__all__ = [
    "CD",
    "MPF",
    "PCD",
    "PL",
    "VPF",
    "Estimate",
    "RatioMatching",
    "Rule",
    "Tethered",
    "get",
    "make",
    "names",
    "register",
]
