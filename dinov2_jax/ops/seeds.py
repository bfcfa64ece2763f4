"""Random keys from the seeds of configurations."""

import jax
import numpy as np
from jax import Array


def seed_key(seed: int) -> Array:
    """The key of a seed from 0 to 2^63 - 1; `jax.random.key` would drop all but 32 bits of it."""
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")
