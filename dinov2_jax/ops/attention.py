"""Scaled dot-product attention behind one function."""

import jax
from jax import Array


def attention(q: Array, k: Array, v: Array) -> Array:
    """Multi-head attention without mask: softmax(q k^T / sqrt(head_dim)) v.

    Args:
      q, k, v: [..., N, H, head_dim], any number of leading batch axes.

    Returns:
      [..., N, H, head_dim] in the dtype of `q`; the softmax is computed in fp32.
    """
    flat = (-1, *q.shape[-3:])
    out = jax.nn.dot_product_attention(
        q.reshape(flat), k.reshape(flat), v.reshape(flat), implementation="xla"
    )
    return out.reshape(q.shape)
