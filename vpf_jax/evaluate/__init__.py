"""How good a trained machine is: one file per kind of score."""
