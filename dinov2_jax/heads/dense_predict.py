"""Predictions of a segmentation or depth head for whole pictures of any size."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from dinov2_jax.data.decode import BadImage, DecodeSpec, load_record
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.given import Paths
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.extract import as_source
from dinov2_jax.features.extractor import with_progress
from dinov2_jax.heads.dense_forward import Form, Trained, at_size, classes_at, head_output
from dinov2_jax.models.maps import feature_levels, resize
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.load import Backbone

# Tokens of one picture at once. Attention holds their square for every head.
MAX_PATCHES = 16_384
_GOOD_SIDE_PX = 518


def predict(
    form: Form,
    trained: Trained,
    blocks: tuple[int, ...],
    backbone: Backbone,
    pictures: Any,
    *,
    short_side: int,
    flip: bool,
    max_pixels: int,
) -> Any:
    """Predicts with a head that fits the backbone: see `DenseHead.predict`."""
    decoding = DecodeSpec(max_pixels, in_channels(backbone.params, backbone.model.patch_size))
    source = as_source(pictures, decoding.channels)
    params, trained = jax.device_put((backbone.params, trained))
    found = []
    for name, pixels in with_progress(_read(source, decoding), len(source)):
        size = _resized(pixels.shape[:2], short_side, backbone.model.patch_size, name)
        found.append(
            np.asarray(
                _of_picture(
                    backbone.model, params, form, blocks, trained, pixels, size,
                    backbone.preprocessing, flip,
                )
            )
        )  # fmt: skip
    return found[0] if _is_one(pictures, source) else found


def _is_one(pictures: Any, source: Source) -> bool:
    """Whether the caller gave a picture, not a list, a folder or a file of pictures."""
    if isinstance(pictures, str | Path):
        return isinstance(source, Paths)
    return len(source) == 1 and not isinstance(pictures, list | tuple) and _holds_one(pictures)


def _holds_one(pictures: Any) -> bool:
    return getattr(pictures, "ndim", 3) in (2, 3) and not hasattr(pictures, "name")


def _read(source: Source, decoding: DecodeSpec) -> Iterator[tuple[str, np.ndarray]]:
    for row in range(len(source)):
        try:
            yield source.name(row), load_record(source, row, decoding)
        except BadImage as error:
            raise SourceError(
                f"{source.name(row)} cannot be read ({error}); leave it out"
            ) from error


def _resized(size: tuple[int, ...], short_side: int, patch_size: int, name: str) -> tuple[int, int]:
    """Height and width that the model is given; raises EvaluationError where they are too many."""
    if short_side < 0:
        raise EvaluationError(f"short_side is {short_side} px; give 0 for the pictures' own size")
    factor = short_side / min(size) if short_side else 1.0
    height, width = (max(1, round(side * factor)) for side in size)
    patches = -(-height // patch_size) * -(-width // patch_size)
    if patches > MAX_PATCHES:
        raise EvaluationError(
            f"{name} has {width} x {height} px, that is {patches:,} patches, and more than "
            f"{MAX_PATCHES:,} at once do not fit; give short_side={_GOOD_SIDE_PX}"
        )
    return height, width


@functools.partial(
    jax.jit, static_argnames=("model", "form", "blocks", "size", "preprocessing", "flip")
)
def _of_picture(
    model: VisionTransformer,
    params: Any,
    form: Form,
    blocks: tuple[int, ...],
    trained: Trained,
    pixels: Array,
    size: tuple[int, int],
    preprocessing: Preprocessing,
    flip: bool,
) -> Array:
    """uint8 [H, W, C] -> classes uint8 or uint16 [H, W], or metres [H, W]."""
    images = normalize(pixels[None], preprocessing.mean, preprocessing.std)
    images = resize(images, size)

    def output(images: Array) -> Array:
        levels = feature_levels(model, params, images, blocks, form.kind == "segmentation")
        return head_output(form, trained, levels)

    outputs = [output(images)]
    if flip:
        outputs.append(output(images[:, :, ::-1])[:, :, ::-1])
    if form.kind == "segmentation":
        return classes_at(outputs, pixels.shape[:2])
    return sum(at_size(form, x, pixels.shape[:2]) for x in outputs)[0] / len(outputs)
