"""JAX's Pallas attention, compiled by Triton, for GPUs that cuDNN refuses."""

import math
import warnings
from types import ModuleType

import jax.numpy as jnp
from jax import Array

BLOCK = 64  # tokens per tile: fills 257 up to 320; 128 would fill them up to 384. Not tuned
BACKWARD_BLOCK = 32  # Pallas' own default
HEAD_DIMS = (16, 32, 64, 128)  # powers of two, as tiles are


def _mha_module() -> ModuleType:
    """Pallas' attention, which JAX 0.12 still has but deprecates.

    Raises:
      ImportError: this version of JAX has no such kernel any more.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*attention is deprecated")
        from jax.experimental.pallas.ops.gpu import attention
    return attention


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
    mha = _mha_module()
    backward = dict.fromkeys(
        ("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), min(block, BACKWARD_BLOCK)
    )
    segments = (jnp.arange(length) >= tokens).astype(jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, k, v))
    out = mha.mha(
        q,
        k,
        v,
        jnp.broadcast_to(segments, (batch, length)) if extra else None,
        sm_scale=1 / math.sqrt(head_dim),
        block_sizes=mha.BlockSizes(block_q=block, block_k=block, **backward),
        interpret=interpret,
    )
    return out[:, :tokens]
