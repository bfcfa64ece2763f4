"""Infers the ViT that a state dict belongs to from its names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.models.layers import swiglu_hidden_dim
from dinov2_jax.models.vit import VARIANTS, VisionTransformer
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.layouts import Flat

HEAD_DIM = 64  # of all released models
# Where weights do not tell their attention heads; a task with another field for it says so itself.
HEADS_REMEDY = "give it: --config.heads=N, or in Python load(..., heads=N)"


def vision_transformer(tensors: Flat, heads: int | None, dtype: Any) -> VisionTransformer:
    """Makes the model for a backbone's tensors, which have the reference's names.

    Position tables are resampled as in the released models: with registers to the exact size and
    antialiased, without them at the scale (n + 0.1) / M.

    Args:
      heads: of the attention; None: those of a known width, otherwise one for each 64 channels.

    Raises:
      WeightsError: a tensor that all ViTs have is missing, or no known ViT has these shapes.
    """
    dim = _shape(tensors, "cls_token")[-1]
    if heads and dim % heads:
        raise WeightsError(f"a width of {dim} cannot be split into {heads} attention heads")
    patch_size = _shape(tensors, "patch_embed.proj.weight")[-1]
    rows = _shape(tensors, "pos_embed")[1]
    side = math.isqrt(rows - 1)
    if side * side != rows - 1:
        raise WeightsError(
            f"pos_embed has {rows} rows, which is no square of patches and a cls token; resample "
            "it to a square where the weights come from"
        )
    numbers = set(re.findall(r"^blocks\.(\d+)\.", "\n".join(tensors), re.MULTILINE))
    depth = max(map(int, numbers), default=-1) + 1
    if depth > len(numbers):  # making a model of millions of blocks would not end
        raise WeightsError(f"it holds {len(numbers)} blocks, numbered up to {depth - 1}")
    ffn, mlp_ratio = _feed_forward(tensors, dim)
    registers = tensors["register_tokens"].shape[1] if "register_tokens" in tensors else 0
    return VisionTransformer(
        dim=dim,
        depth=depth,
        heads=heads or _heads(dim),
        patch_size=patch_size,
        image_size=side * patch_size,
        ffn=ffn,
        mlp_ratio=mlp_ratio,
        registers=registers,
        layerscale=1.0 if "blocks.0.ls1.gamma" in tensors else None,
        interpolate_offset=0.0 if registers else 0.1,
        interpolate_antialias=bool(registers),
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        proj_bias="blocks.0.attn.proj.bias" in tensors,
        ffn_bias=f"blocks.0.mlp.{'w12' if ffn == 'swiglu' else 'fc1'}.bias" in tensors,
        dtype=dtype,
    )


def in_channels(params: Mapping[str, Any], patch_size: int) -> int:
    """The number of channels of the images that a backbone takes."""
    return params["patch_embed"]["kernel"].shape[0] // patch_size**2


def expected_shapes(model: VisionTransformer, channels: int) -> Any:
    """The shapes of the model's parameter tree."""
    images = jnp.zeros((1, model.patch_size, model.patch_size, channels))
    plain = model.clone(attention="xla")  # other kernels refuse a single patch
    return jax.eval_shape(plain.init, jax.random.key(0), images)["params"]


def _shape(tensors: Flat, name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(
            f"tensor {name!r} is missing, so these are not a whole backbone; they hold "
            f"{', '.join(list(tensors)[:5])}, ..."
        )
    return tensors[name].shape


def _heads(dim: int) -> int:
    known = {variant.dim: variant.heads for variant in VARIANTS.values()}
    if dim not in known and dim % HEAD_DIM:
        raise WeightsError(
            f"the number of attention heads does not follow from a width of {dim}, which is no "
            f"multiple of {HEAD_DIM}; {HEADS_REMEDY}"
        )
    return known.get(dim, dim // HEAD_DIM)


def _feed_forward(tensors: Flat, dim: int) -> tuple[str, float]:
    """The kind of the feed-forward network, and its hidden width relative to `dim`."""
    if "blocks.0.mlp.w12.weight" not in tensors:
        return "mlp", _shape(tensors, "blocks.0.mlp.fc1.weight")[0] / dim
    hidden = tensors["blocks.0.mlp.w12.weight"].shape[0] // 2
    for ratio in (4.0, 1.5 * hidden / dim):
        if swiglu_hidden_dim(dim, ratio) == hidden:
            return "swiglu", ratio
    raise WeightsError(f"SwiGLU of width {hidden} at width {dim} follows no known rule")
