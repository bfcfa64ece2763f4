"""What segmentation and depth heads compute from features; pure functions of arrays."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.models.depth import DPT, LinearDepth, to_image_size
from dinov2_jax.models.maps import Level, feature_levels, resize
from dinov2_jax.models.segmentation import SegmentationHead, Statistics
from dinov2_jax.models.vit import VisionTransformer

KINDS = ("segmentation", "depth_linear", "depth_dpt")
SPREAD = 4  # blocks that depth heads read, evenly spread
_LARGE = 24, (4, 11, 17, 23)  # depth, and the reference's choice for it, which is not quite even
_STRIP_ROWS = 128  # of logits at the picture's size that are in memory at once


class Form(NamedTuple):
    """What a compiled program must know of a head beside its arrays.

    Attributes:
      kind: one of KINDS.
      low, high: metres, of the depth; 0 for segmentation.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0


class Trained(NamedTuple):
    """The arrays of a head: parameters, and running statistics of a segmentation head."""

    params: Any
    statistics: Statistics | None = None


def read_blocks(kind: str, count: int, depth: int) -> tuple[int, ...]:
    """The blocks that the reference's heads read, 0-based, ascending.

    Segmentation reads the last ones; depth reads the last one, or four that are evenly spread.
    """
    if kind == "segmentation":
        return tuple(range(depth - count, depth))
    if (depth, count) == (_LARGE[0], SPREAD):
        return _LARGE[1]
    return tuple((i + 1) * depth // count - 1 for i in range(count))


def module_of(form: Form, params: Mapping[str, Any]) -> SegmentationHead | LinearDepth | DPT:
    """The module of which these are the parameters; only their shapes count."""
    if form.kind == "segmentation":
        return SegmentationHead(params["bias"].shape[0])
    if form.kind == "depth_linear":
        return LinearDepth(form.low, form.high, params["bias"].shape[0])
    widths = tuple(params[f"projects_{i}"]["bias"].shape[0] for i in range(SPREAD))
    return DPT(form.low, params["project"]["bias"].shape[0], widths)


def head_output(form: Form, trained: Trained, levels: Sequence[Level]) -> Array:
    """What the head makes of features, at its own resolution.

    Args:
      levels: of its blocks, ascending; after the backbone's final norm for segmentation, before
        it for depth.

    Returns:
      Logits [B, h, w, K] of patches, or metres [B, h', w'] that are not clamped yet.
    """
    module = module_of(form, trained.params)
    if isinstance(module, SegmentationHead):
        maps = [level.patches for level in levels]
        return module.apply({"params": trained.params}, maps, trained.statistics)[0]
    return module.apply({"params": trained.params}, levels)


def at_size(form: Form, output: Array, size: tuple[int, int]) -> Array:
    """Resizes `head_output` to pictures of H x W: logits [B, H, W, K], or metres [B, H, W]."""
    if form.kind == "segmentation":
        return resize(output, size)
    return to_image_size(output, form.low, form.high, size)


@functools.partial(jax.jit, static_argnames=("model", "form", "blocks"))
def of_images(
    model: VisionTransformer,
    params: Any,
    form: Form,
    blocks: tuple[int, ...],
    trained: Trained,
    images: Array,
) -> Array:
    """Backbone and head on whole pictures.

    Args:
      model, params: the backbone.
      blocks: of `DenseHead.blocks_of`.
      images: [B, H, W, C], normalised, of any size.

    Returns:
      Logits [B, H, W, K], or metres [B, H, W].
    """
    levels = feature_levels(model, params, images, blocks, form.kind == "segmentation")
    return at_size(form, head_output(form, trained, levels), images.shape[1:3])


def classes_at(logits: list[Array], size: tuple[int, int]) -> Array:
    """Logits [1, h, w, K] -> the likeliest class of each pixel [H, W].

    Several logits are averaged as probabilities. Only a strip of the picture has all its logits in
    memory at once: 150 classes of a large photo are gigabytes.
    """
    dtype = jnp.uint8 if logits[0].shape[-1] <= 255 else jnp.uint16
    strips = []
    for start in range(0, size[0], _STRIP_ROWS):
        rows = slice(start, min(start + _STRIP_ROWS, size[0]))
        scores = [resize(x, size, rows=rows) for x in logits]
        if len(scores) > 1:
            scores = [sum(map(jax.nn.softmax, scores))]
        strips.append(scores[0].argmax(axis=-1)[0].astype(dtype))
    return jnp.concatenate(strips)
