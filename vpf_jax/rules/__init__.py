"""How a synapse learns: one file per family of rules."""
