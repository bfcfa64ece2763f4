"""Log-sum-exp of rows, on a GPU in one pass over them."""

import jax
import jax.numpy as jnp
from jax import Array


def log_sum_exp(x: Array) -> Array:
    """log of the sum of exp(x) along the last axis: fp32 [..., K] -> [...], without gradient."""
    peak, total = peak_and_total(x)
    return (peak + jnp.log(total))[..., 0]


def peak_and_total(x: Array) -> tuple[Array, Array]:
    """The maximum m of each row, and the sum of exp(x - m): fp32 [..., K] -> two [..., 1].

    Without gradient.
    """
    return jax.lax.platform_dependent(
        jax.lax.stop_gradient(x), cuda=in_one_pass, default=in_two_passes
    )


def in_two_passes(x: Array) -> tuple[Array, Array]:
    """The form that reads x twice."""
    peak = x.max(-1, keepdims=True)
    return peak, jnp.exp(x - peak).sum(-1, keepdims=True)


def in_one_pass(x: Array) -> tuple[Array, Array]:
    """The form that joins parts of a row; slow on a CPU, whose compiler does not vectorise it."""

    def join(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (peak, total), (high, more) = one, other
        top = jnp.maximum(peak, high)
        return top, total * jnp.exp(peak - top) + more * jnp.exp(high - top)

    # A finite start: -inf minus -inf would be NaN.
    start = jnp.asarray(jnp.finfo(x.dtype).min), jnp.zeros((), x.dtype)
    peak, total = jax.lax.reduce((x, jnp.ones_like(x)), start, join, (x.ndim - 1,))
    return peak[..., None], total[..., None]
