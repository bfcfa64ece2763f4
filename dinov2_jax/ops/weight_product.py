"""A product with weights whose gradient leaves it in fp32."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def weight_product(x: Array, weights: Array, axis: int) -> Array:
    """Sums x [..., D] times weights over `axis` of the weights, which has size D.

    Both factors are in the dtype of x, also those of the backward pass. The gradient of the weights
    is not rounded to it: every device holds a part of this sum, and XLA adds the parts of all
    devices where the product ends, in the dtype of its result.

    Args:
      weights: [D, F] for axis 0, [F, D] for axis 1; their gradient has their own dtype.

    Returns:
      [..., F] in fp32.
    """
    return _product(x, weights.astype(x.dtype), ((x.ndim - 1,), (axis,)))


def _product(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _forward(x: Array, weights: Array, axis: int) -> tuple[Array, tuple[Array, ...]]:
    # Cast once: where weights are split over devices, every cast is gathered for itself.
    factor = weights.astype(x.dtype)
    return weight_product(x, factor, axis), (x, factor, jnp.zeros((), weights.dtype))


def _backward(axis: int, residuals: tuple[Array, ...], error: Array) -> tuple[Array, Array]:
    x, factor, like_weights = residuals
    # In fp32 the two products would read twice the bytes and take twice the time.
    error = error.astype(x.dtype)
    into_x = _product(error, factor, ((x.ndim - 1,), (1 - axis,)))
    rows = tuple(range(x.ndim - 1))
    factors = (x, error) if axis == 0 else (error, x)
    into_weights = _product(*factors, (rows, rows))
    return into_x.astype(x.dtype), into_weights.astype(like_weights.dtype)


weight_product.defvjp(_forward, _backward)
