"""Micro-batches for gradient accumulation: which groups belong to which part of a batch.

Part a of A holds the groups a, a + A, a + 2 A, ...: every device then holds its share of each part,
because groups are spread over devices in order.
"""

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.parallel.constraints import constrain_batch


def take_part(x: Array, groups: int, parts: int, index: Array) -> Array:
    """Part `index` of x [G r, ...], which holds G groups of r rows each: [G r / A, ...]."""
    rows = x.reshape(groups // parts, parts, len(x) // groups, *x.shape[1:])
    part = jax.lax.dynamic_index_in_dim(rows, index, axis=1, keepdims=False)
    return constrain_batch(part.reshape(len(x) // parts, *x.shape[1:]))


def join_parts(x: Array) -> Array:
    """All parts [A, G / A, ...] in the order of their groups: [G, ...]."""
    return jnp.swapaxes(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
