"""Settings of all tests: silent broadcasting between ranks and reuse of a random key are errors."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
