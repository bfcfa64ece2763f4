"""cuDNN's fused attention, for even and odd numbers of tokens. GPU only."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def cudnn_attention(q: Array, k: Array, v: Array, implementation: str = "cudnn") -> Array:
    """Self-attention of q, k, v [B, N, H, head_dim], bf16 or fp16 -> the same shape.

    With cuDNN, JAX refuses the backward pass of an odd N (257 = cls + 256 patches, 261 with
    registers, 197, 37). So where there is one, an odd N is padded by one token, and the sequence
    lengths exclude it: nothing attends to it and it passes no gradient.

    Args:
      implementation: "xla" runs the same call on any platform, for tests.

    Raises:
      RuntimeError: when cuDNN is not installed.
      NotImplementedError: other dtypes, or a head_dim that is not a multiple of 8 or exceeds 128
        (256 from Hopper on).
    """
    if q.shape[1] % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    return _odd(q, k, v, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _odd(q: Array, k: Array, v: Array, implementation: str) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation)


def _padded(q: Array, k: Array, v: Array, implementation: str) -> Array:
    batch, tokens = q.shape[:2]
    lengths = jnp.full((batch,), tokens, jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return out[:, :tokens]


def _forward(q: Array, k: Array, v: Array, implementation: str) -> tuple[Array, Any]:
    return jax.vjp(functools.partial(_padded, implementation=implementation), q, k, v)


def _backward(implementation: str, pull: Any, slope: Array) -> tuple[Array, Array, Array]:
    return pull(slope)


_odd.defvjp(_forward, _backward)
