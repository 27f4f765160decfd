"""Learning systems beside variational probability flow, each in its own module; none is imported with `vpf_jax`."""
