"""Experiments with vpf_jax: one script per result, run from a checkout as `python -m experiments.<name>`."""
