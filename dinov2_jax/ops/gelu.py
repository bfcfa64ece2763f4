"""Exact GELU whose backward pass keeps nothing but its input."""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU: x times the probability that a standard normal variable is below x.

    Computed in fp32, and returned in the dtype of x.
    """
    return _forward(x)[0]


def _forward(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    return (wide * _below(wide)).astype(x.dtype), x


def _backward(x: Array, dy: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (0.5 / jnp.pi) ** 0.5
    return ((dy.astype(jnp.float32) * (_below(wide) + wide * density)).astype(x.dtype),)


def _below(x: Array) -> Array:
    # jax.nn.gelu calls erfc, which evaluates two formulas and throws one away so that the relative
    # error stays small far down the tail. Here only the absolute error matters, and both are within
    # 2.1e-7 |x| of the exact value.
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gelu.defvjp(_forward, _backward)
