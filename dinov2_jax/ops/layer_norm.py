"""The core of LayerNorm, whose backward pass keeps its result and one number a row."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.ops.attention import platform_in_use


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def normalize(x: Array, epsilon: float, dtype: DTypeLike) -> Array:
    """(x - mean) / sqrt(variance + epsilon) along the last axis, without scale and bias.

    Args:
      x: [..., D]; its sums are fp32, and the variance is that about the mean.
      dtype: of the result, which the backward pass keeps instead of x.
    """
    mean, inverse = _statistics(x, epsilon)
    return ((x.astype(jnp.float32) - mean) * inverse).astype(dtype)


def _statistics(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Mean and inverse deviation, [..., 1]."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)


def _one_pass_statistics(x: Array, epsilon: float) -> tuple[Array, Array]:
    """As `_statistics`; parts of a row are joined by their means and deviations (Welford)."""

    def join(one: tuple[Array, ...], other: tuple[Array, ...]) -> tuple[Array, ...]:
        (count, mean, square), (more, middle, spread) = one, other
        total = count + more
        share = more / jnp.maximum(total, 1)
        apart = middle - mean
        return total, mean + apart * share, square + spread + apart * apart * count * share

    x = x.astype(jnp.float32)
    zero = jnp.zeros((), jnp.float32)
    parts = jnp.ones_like(x), x, jnp.zeros_like(x)
    _, mean, square = jax.lax.reduce(parts, (zero, zero, zero), join, (x.ndim - 1,))
    return mean[..., None], jax.lax.rsqrt(square[..., None] / x.shape[-1] + epsilon)


def _forward(x: Array, epsilon: float, dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    # The barriers are for GPUs. XLA would otherwise fuse the sums with what is computed from them
    # into a kernel that cannot return them, and keep x to compute the result again.
    sums = _statistics if platform_in_use() != "gpu" else _one_pass_statistics
    mean, inverse = jax.lax.optimization_barrier(sums(x, epsilon))
    normed = ((x.astype(jnp.float32) - mean) * inverse).astype(dtype)
    normed = jax.lax.optimization_barrier(normed)
    return normed, (normed, inverse)


def _backward(
    epsilon: float, dtype: DTypeLike, residuals: tuple[Array, Array], slope: Array
) -> tuple[Array]:
    normed, inverse = residuals
    wide, steep = normed.astype(jnp.float32), slope.astype(jnp.float32)
    sums = steep.sum(-1, keepdims=True), (steep * wide).sum(-1, keepdims=True)
    sums = jax.lax.optimization_barrier(sums)
    first, second = (x / normed.shape[-1] for x in sums)
    return (inverse * (steep - first - wide * second),)


normalize.defvjp(_forward, _backward)
