"""Weights of one shape for a model of another: position tables and patch embeddings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov2_jax.models.positions import resize_positions
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.architecture import in_channels

Params = Mapping[str, Any]


def with_image_size(
    params: Params,
    model: VisionTransformer,
    image_size: int | tuple[int, int],
    rule: tuple[float, bool] | None = None,
) -> dict[str, Any]:
    """Resamples the position table for images of `image_size` px.

    By its own rule, the model computes this table at that size, so features of that size stay the
    same. At other sizes they change, because positions are then resampled from the new table.

    Args:
      params: of `model`.
      image_size: px of the side, or (height, width), multiples of the patch.
      rule: offset and antialias, see models/positions.py; None: those of the model.
    """
    grid = model.clone(image_size=image_size).table_grid()
    rule = rule or (model.interpolate_offset, model.interpolate_antialias)
    table = resize_positions(np.asarray(params["pos_embed"]), grid, *rule)
    return {**params, "pos_embed": np.asarray(table)}


def with_channels(params: Params, patch_size: int, channels: int) -> dict[str, Any]:
    """Changes the patch embedding for images of another number of channels.

    Each new channel gets the sum of the old kernels divided by `channels`. A picture whose
    normalised channels are all equal then keeps its patch embedding.

    Args:
      params: with a patch embedding [patch * patch * C, D].
    """
    old = in_channels(params, patch_size)
    if channels == old:
        return dict(params)
    embedding = params["patch_embed"]
    kernel = np.asarray(embedding["kernel"])
    total = kernel.reshape(patch_size**2, old, -1).sum(axis=1, keepdims=True, dtype=np.float64)
    each = np.repeat(total / channels, channels, axis=1).reshape(-1, kernel.shape[-1])
    return {**params, "patch_embed": {**embedding, "kernel": each.astype(kernel.dtype)}}
