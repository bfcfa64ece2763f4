"""JAX's Pallas attention, compiled by Triton, for GPUs that cuDNN refuses.

JAX deprecates Pallas' Triton backend (0.11) and this kernel (0.12), and names
`tokamax.dot_product_attention` in its place. While tokamax may still change its interface we do not
depend on it: where JAX has dropped the kernel, XLA's attention replaces it, and the log says so.
"""

import warnings

import jax.numpy as jnp
from jax import Array

BLOCK = 64  # tokens per tile: fills 257 up to 320; 128 would fill them up to 384. Not tuned
BACKWARD_BLOCK = 32  # Pallas' own default
HEAD_DIMS = (16, 32, 64, 128)  # powers of two, as tiles are


def triton_attention(q: Array, k: Array, v: Array, interpret: bool = False) -> Array:
    """Self-attention of q, k, v [B, N, H, head_dim] -> the same shape.

    N is filled up to whole tiles. The padding is a segment of its own, so no token attends to it;
    its rows are cut off.

    Args:
      interpret: runs the kernel's program slowly on any platform, for tests.

    Raises:
      ImportError: this version of JAX has no such kernel any more.
      ValueError: a head_dim that is not in HEAD_DIMS.
    """
    batch, tokens, _, head_dim = q.shape
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"triton attention takes a head_dim of {HEAD_DIMS}, not {head_dim}")
    block = min(BLOCK, max(16, 1 << (tokens - 1).bit_length()))
    extra = -tokens % block
    length = tokens + extra
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*attention is deprecated")  # since JAX 0.12
        from jax.experimental.pallas.ops.gpu import attention as pallas
    backward = ("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    blocks = dict.fromkeys(backward, min(block, BACKWARD_BLOCK))
    segments = (jnp.arange(length) >= tokens).astype(jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, k, v))
    segments = jnp.broadcast_to(segments, (batch, length)) if extra else None
    sizes = pallas.BlockSizes(block_q=block, block_k=block, **blocks)
    options = {"sm_scale": head_dim**-0.5, "block_sizes": sizes, "interpret": interpret}
    return pallas.mha(q, k, v, segments, **options)[:, :tokens]
