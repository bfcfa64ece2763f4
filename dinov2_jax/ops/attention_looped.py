"""Attention for CPUs: independent small products, which use all cores and their caches."""

import math

import jax
import jax.numpy as jnp
from jax import Array

# XLA computes a product of fewer than about 500 x 500 logits on one core, however many heads or
# images it has, but runs independent products in parallel. So each head is a product of its own.
LOGITS_OF_PRODUCT = 2**20  # of one head: longer images are cut into blocks, shorter ones batched
MOST_BLOCKS = 16  # of a head's rows; each is compiled separately, and 16 suffice for 4,096 tokens
LOGITS_AT_ONCE = 2**24  # of all products in a turn, 64 MiB in fp32; a turn has at least one head
LOGITS_TO_KEEP = 2**19  # above this the backward pass computes the logits again, turn by turn


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`, at least 1."""
    return max(n for n in range(1, max(min(limit, number), 1) + 1) if number % n == 0)


def at_once(batch: int, tokens: int, heads: int) -> tuple[int, int, int]:
    """How many images and heads one turn computes, and how many rows of logits one product has."""
    images = largest_divisor(batch, LOGITS_OF_PRODUCT // tokens**2)
    heads = largest_divisor(heads, LOGITS_AT_ONCE // (images * tokens**2))
    blocks = min(math.ceil(tokens**2 / LOGITS_OF_PRODUCT), MOST_BLOCKS)
    return images, heads, math.ceil(tokens / blocks)


def one_head(q: Array, k: Array, v: Array) -> Array:
    """Attention of queries [b, n, head_dim] to keys and values [b, N, head_dim]."""
    logits = jnp.einsum("bnd,bmd->bnm", q, k, preferred_element_type=jnp.float32)
    logits *= q.shape[-1] ** -0.5
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum("bnm,bmd->bnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)


def looped_attention(q: Array, k: Array, v: Array) -> Array:
    """Self-attention of q, k, v [B, N, H, head_dim] -> the same shape; softmax in fp32."""
    batch, tokens, heads, head_dim = q.shape
    b, h, rows = at_once(batch, tokens, heads)

    def turn(qkv: tuple[Array, Array, Array]) -> Array:
        """[b, N, h, head_dim] -> the same."""
        outs = []
        for q, k, v in zip(*(jnp.unstack(x, axis=2) for x in qkv), strict=True):
            blocks = jnp.split(q, [*range(rows, tokens, rows)], axis=1)
            outs.append(jnp.concatenate([one_head(block, k, v) for block in blocks], axis=1))
        return jnp.stack(outs, axis=2)

    if batch * heads * tokens**2 > LOGITS_TO_KEEP:
        turn = jax.checkpoint(turn)
    if (b, h) == (batch, heads):
        return turn((q, k, v))

    def by_turn(x: Array) -> Array:
        x = x.reshape(batch // b, b, tokens, heads // h, h, head_dim)
        return jnp.moveaxis(x, 3, 1).reshape(-1, b, tokens, h, head_dim)

    out = jax.lax.map(turn, (by_turn(q), by_turn(k), by_turn(v)))
    out = out.reshape(batch // b, heads // h, b, tokens, h, head_dim)
    return jnp.moveaxis(out, 1, 3).reshape(q.shape)
