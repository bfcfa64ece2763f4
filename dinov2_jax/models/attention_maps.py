"""The attention of a block as probabilities, which no fused kernel returns.

Earlier blocks run as configured. The block computes only its norm, q and k, then logits and softmax
in fp32. Later blocks do not run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.models.layers import LayerNorm, linear
from dinov2_jax.models.vit import VisionTransformer


def attention_maps(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: Array,
    block: int = -1,
    source: str | Sequence[int] = "cls",
) -> Array:
    """How much each head of a block attends from some tokens to every patch.

    Attention to cls and registers is left out, so a map sums to less than 1 (`attention_rows` has
    all of it).

    Args:
      model, params: from `load`; blocks stacked, or unstacked by `unstack_blocks`.
      images: [B, H, W, C], normalised.
      block: 0-based; negative counts from the last.
      source: "cls", "registers", or the numbers of patches, row-major.

    Returns:
      fp32 probabilities [B, H, P] from "cls", [B, H, R, P] from the R "registers", [B, H, n, P]
      from n patches.

    Raises:
      ValueError: for a block, source or patch that does not exist.
    """
    first = 1 + model.registers
    if source == "cls":
        return attention_rows(model, params, images, (0,), block)[:, :, 0, first:]
    if source == "registers":
        if not model.registers:
            raise ValueError('the model has no registers to look from; use source="cls"')
        tokens = range(1, first)
    elif isinstance(source, str):
        raise ValueError(f'source {source!r} is unknown; use "cls", "registers" or patch numbers')
    else:
        _check_patches(source, model, images)
        tokens = [first + patch for patch in source]
    return attention_rows(model, params, images, tokens, block)[..., first:]


def attention_rows(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: Array,
    tokens: Sequence[int],
    block: int = -1,
) -> Array:
    """Rows of the attention matrix of a block, over all tokens; each sums to 1.

    Args:
      tokens: 0 is cls, then the registers, then the patches row-major.

    Returns:
      fp32 probabilities [B, H, len(tokens), 1 + R + P].

    Raises:
      ValueError: for a block that does not exist.
    """
    if not -model.depth <= block < model.depth:
        raise ValueError(
            f"block {block} does not exist; the model has {model.depth}, so choose one from "
            f"{-model.depth} to {model.depth - 1}"
        )
    before, layer = _split_at(params, block % model.depth, apart=not model.scan_blocks)
    x = model.clone(depth=block % model.depth).apply({"params": before}, images)["prenorm"]
    normed = LayerNorm(model.dtype, name="norm1").apply({"params": layer["norm1"]}, x)
    project = linear(3 * model.dim, model.qkv_bias, model.dtype, "qkv")
    qkv = project.apply({"params": layer["attn"]["qkv"]}, normed)
    q, k, _ = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, model.heads, -1), 2, 0)
    chosen = q[:, jnp.asarray(list(tokens))].astype(jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", chosen, k.astype(jnp.float32), precision="highest")
    return jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1)


def _split_at(
    params: Mapping[str, Any], block: int, apart: bool
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Parameters of a model that ends before `block`, and those of `block`."""
    blocks = params["blocks"]
    if isinstance(blocks, tuple):
        return {**params, "blocks": blocks[:block]}, blocks[block]
    pick = lambda i: jax.tree.map(lambda p: p[i], blocks)  # noqa: E731
    # No blocks are an empty tuple, because a stack of height 0 cannot be scanned.
    few = tuple(map(pick, range(block))) if apart or not block else pick(slice(block))
    return {**params, "blocks": few}, pick(block)


def _check_patches(patches: Sequence[int], model: VisionTransformer, images: Array) -> None:
    rows, columns = (side // model.patch_size for side in images.shape[1:3])
    wrong = [patch for patch in patches if not 0 <= patch < rows * columns]
    if wrong or not len(patches):
        raise ValueError(
            f"source names {wrong[0] if wrong else 'no patch'}, but the image has patches 0 to "
            f"{rows * columns - 1} ({rows} rows of {columns})"
        )
