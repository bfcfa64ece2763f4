"""Splash attention, JAX's Pallas kernel for TPU, at any length."""

import jax
import jax.numpy as jnp
from jax import Array

LANES = 128  # a TPU register's width: the kernel's blocks are multiples of it
MAX_KEY_BLOCK = 2048  # tokens; times LANES queries in fp32 this is 1 MB of fast memory


def splash_attention(q: Array, k: Array, v: Array, interpret: bool = False) -> Array:
    """Self-attention of q, k, v [B, N, H, 64] -> the same shape.

    N is filled up to a multiple of 128 (257 -> 384, 1370 -> 1408). The padding is a segment of its
    own, so no token attends to it; its rows are cut off.

    Args:
      interpret: runs the kernel's program slowly on any platform, for tests.

    Raises:
      ValueError: a head_dim other than 64, which every DINOv2 model has. Its scale of 1/8 is exact
        in bf16, so that scaling q before the kernel loses nothing.
    """
    # Imported here, because Pallas for TPU takes 0.5 s to import and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens, heads, head_dim = q.shape[1:]
    if head_dim != 64:
        raise ValueError(f"splash attention is set up for a head_dim of 64, not {head_dim}")
    extra = -tokens % LANES
    length = tokens + extra
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((length, length))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**_block_sizes(length)),
        interpret=interpret,
    )
    keys = (jnp.arange(length) >= tokens).astype(jnp.int32)
    # Padded queries attend to the tokens too, because a row without keys would be 0 / 0.
    segments = splash.SegmentIds(q=jnp.zeros_like(keys), kv=keys)
    padding = ((0, 0), (0, 0), (0, extra), (0, 0))
    qkv = [jnp.pad(jnp.swapaxes(x, 1, 2), padding) for x in (q * head_dim**-0.5, k, v)]
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(*qkv, segments)
    return jnp.swapaxes(out[:, :, :tokens], 1, 2)


def _block_sizes(length: int) -> dict[str, int]:
    """Blocks of few queries and many keys, so that keys and values are read once per head.

    Not tuned on a TPU. The two backward kernels are not fused: fused they need six times the memory
    at 1,408 tokens, by XLA's count.
    """
    blocks = length // LANES
    most = max(n for n in range(1, MAX_KEY_BLOCK // LANES + 1) if blocks % n == 0)
    queries = ("block_q", "block_q_dkv", "block_q_dq")
    keys = ("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq")
    return dict.fromkeys(queries, LANES) | dict.fromkeys(keys, most * LANES)
