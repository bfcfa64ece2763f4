"""cuDNN's fused attention, exact at odd lengths too. GPU only."""

import jax
import jax.numpy as jnp
from jax import Array


def cudnn_attention(q: Array, k: Array, v: Array, implementation: str = "cudnn") -> Array:
    """Self-attention of q, k, v [B, N, H, head_dim], bf16 or fp16 -> the same shape.

    JAX refuses the backward pass of an odd N (257 = cls + 256 patches, 261 with registers, 197, 37)
    with cuDNN. One token more makes N even; the sequence lengths say that it is none, so it is
    neither attended to nor does it pass a gradient. Even lengths go through as they are.

    Args:
      implementation: "xla" runs the same call on any platform, for tests.

    Raises:
      RuntimeError: when cuDNN is not installed.
      NotImplementedError: for other dtypes, and for a head_dim that is no multiple of 8, or greater
        than 128 (256 from Hopper on).
    """
    if q.shape[1] % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    tokens = q.shape[1]
    lengths = jnp.full((q.shape[0],), tokens, jnp.int32)
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
