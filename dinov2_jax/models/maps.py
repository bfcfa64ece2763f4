"""Maps of features: patch tokens as pictures, the padding before them, and their resizing.

Source: FB dinov2/hub/utils.py (CenterPadding); torch's bilinear interpolation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.models.vit import VisionTransformer


class Level(NamedTuple):
    """Features of one block: a map [B, h, w, D] of patch tokens, and the cls token [B, D]."""

    patches: Array
    cls: Array


def center_padding(side: int, patch_size: int) -> tuple[int, int]:
    """Pixels before and after `side` px that make it whole patches; an odd one comes after."""
    total = -side % patch_size
    return total // 2, total - total // 2


def pad_to_patches(images: Array, patch_size: int) -> Array:
    """Surrounds normalised images [B, H, W, C] by zeros, the mean colour, up to whole patches.

    Nothing cuts the padding off again: what a head makes of the padded image is resized to H x W
    and so squeezed a little towards the centre. The released heads were trained that way.
    """
    rows, cols = (center_padding(side, patch_size) for side in images.shape[-3:-1])
    leading = [(0, 0)] * (images.ndim - 3)
    return jnp.pad(images, [*leading, rows, cols, (0, 0)])


def feature_levels(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: Array,
    blocks: Sequence[int],
    norm: bool,
) -> list[Level]:
    """Features of padded images after some blocks.

    Args:
      model, params: from `load`.
      images: [B, H, W, C], normalised, of any size.
      blocks: 0-based, ascending.
      norm: after the backbone's final norm (segmentation), or before it (depth).

    Returns:
      One `Level` a block, on a grid of ceil(H / patch) x ceil(W / patch). Registers are left out.
    """
    padded = pad_to_patches(images, model.patch_size)
    rows, cols = (side // model.patch_size for side in padded.shape[1:3])
    pairs = model.apply({"params": params}, padded, intermediate=blocks)["blocks"]
    first, tokens = 1 + model.registers, [pair[norm] for pair in pairs]
    return [Level(x[:, first:].reshape(-1, rows, cols, model.dim), x[:, 0]) for x in tokens]


def resize(
    x: Array, size: tuple[int, int], align_corners: bool = False, rows: slice = slice(None)
) -> Array:
    """Resizes maps [..., h, w, D] bilinearly to [..., H, W, D], as torch does.

    There is no antialias, also where maps shrink: each value is a mean of at most four.

    Args:
      size: H, W.
      align_corners: the corner values are at the corners, not half a step within.
      rows: those of H that are wanted.
    """
    for axis, side, part in ((-3, size[0], rows), (-2, size[1], slice(None))):
        if x.shape[axis] != side or align_corners or part != slice(None):
            x = _resize_axis(x, side, axis, align_corners, part)
    return x


def _resize_axis(x: Array, side: int, axis: int, align_corners: bool, part: slice) -> Array:
    # Whole rows are gathered: on a CPU two to four times as fast as torch, and ten times as fast as
    # a product with a matrix that is nearly all zeros.
    lower, upper, share = (y[part] for y in sources(side, x.shape[axis], align_corners))
    share = share.astype(np.float32).reshape([-1] + [1] * (-1 - axis))
    return jnp.take(x, lower, axis) * (1 - share) + jnp.take(x, upper, axis) * share


def resize_by_products(x: Array, size: tuple[int, int]) -> Array:
    """As `resize`, with corners half a step outside, for losses.

    The gradient of a gather adds pixels one by one, in any order on a GPU. That of a product with a
    matrix is a product.
    """
    rows, cols = (_weights(side, old) for side, old in zip(size, x.shape[-3:-1], strict=True))
    x = jnp.einsum("hr,...rcd->...hcd", rows, x, precision="highest")
    return jnp.einsum("wc,...hcd->...hwd", cols, x, precision="highest")


def _weights(side: int, old: int) -> np.ndarray:
    """How much of each of `old` values is in each of `side`, fp32 [side, old]."""
    lower, upper, share = sources(side, old, False)
    weights, place = np.zeros((side, old), np.float32), np.arange(side)
    np.add.at(weights, (place, lower), 1 - share)
    np.add.at(weights, (place, upper), share)
    return weights


def sources(side: int, old: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each of `side` values comes from among `old`: two places, and the second's share."""
    place = np.arange(side)
    if align_corners:
        source = place * ((old - 1) / max(side - 1, 1))
    else:
        source = np.maximum((place + 0.5) * (old / side) - 0.5, 0)
    lower = np.minimum(source.astype(int), old - 1)
    return lower, np.minimum(lower + 1, old - 1), source - lower
