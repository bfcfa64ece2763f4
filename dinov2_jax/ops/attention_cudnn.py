"""cuDNN's fused attention, for even and odd numbers of tokens. GPU only."""

import jax
import jax.numpy as jnp
from jax import Array


def cudnn_attention(q: Array, k: Array, v: Array, implementation: str = "cudnn") -> Array:
    """Self-attention of q, k, v [B, N, H, head_dim], bf16 or fp16 -> the same shape.

    With cuDNN, JAX refuses the backward pass of an odd N (257 = cls + 256 patches, 261 with
    registers, 197, 37). So an odd N is padded by one token, and the sequence lengths exclude it:
    nothing attends to it and it passes no gradient.

    Args:
      implementation: "xla" runs the same call on any platform, for tests.

    Raises:
      RuntimeError: when cuDNN is not installed.
      NotImplementedError: other dtypes, or a head_dim that is not a multiple of 8 or exceeds 128
        (256 from Hopper on).
    """
    options, tokens = {"implementation": implementation}, q.shape[1]
    if tokens % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, **options)
    lengths = jnp.full((q.shape[0],), tokens, jnp.int32)
    options |= {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, **options)[:, :tokens]
