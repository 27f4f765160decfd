"""Learning systems beside VPF, each a module of its own: none is used by the rest of the library."""
