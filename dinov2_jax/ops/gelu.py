"""Exact GELU, with the formula that is fast on every platform."""

import jax
import jax.numpy as jnp
from jax import Array


def gelu(x: Array) -> Array:
    """Exact GELU: x times the probability that a standard normal variable is below x."""
    if x.dtype == jnp.float32:
        # jax.nn.gelu calls erfc, which evaluates two formulas and throws one away so that the
        # relative error stays small far down the tail. Here only the absolute error matters, and
        # both are within 2.1e-7 |x| of the exact value.
        return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))
    return jax.nn.gelu(x, approximate=False)
