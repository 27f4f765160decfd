"""Settings of all tests: silent broadcasting between ranks and reuse of a random key are errors; interrupts arrive."""

import signal

import jax
import typed

typed.install()

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# What a shell starts in its background ignores interrupts, and so do its children; some tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
