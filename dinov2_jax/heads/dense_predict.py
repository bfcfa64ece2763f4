"""Predictions of a segmentation or depth head for whole pictures of any size."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
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
from dinov2_jax.heads.windows import View, segment
from dinov2_jax.models.maps import feature_levels
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.load import Backbone

# Tokens of one picture at once. Attention holds their square for every head.
MAX_PATCHES = 16_384
_GOOD_SIDE_PX = 518


class Options(NamedTuple):
    """How pictures are shown to the model; see `DenseHead.predict`."""

    short_side: int
    window: int
    flip: bool
    max_pixels: int


class _Program(NamedTuple):
    """What is compiled for: the backbone, the head, and how pictures are normalised; hashable."""

    model: VisionTransformer
    form: Form
    blocks: tuple[int, ...]
    preprocessing: Preprocessing


def predict(
    form: Form,
    trained: Trained,
    blocks: tuple[int, ...],
    backbone: Backbone,
    pictures: Any,
    options: Options,
) -> Any:
    """Predicts with a head that fits the backbone: see `DenseHead.predict`."""
    patch = backbone.model.patch_size
    _check(options, form)
    decoding = DecodeSpec(options.max_pixels, in_channels(backbone.params, patch))
    source = as_source(pictures, decoding.channels)
    program = _Program(backbone.model, form, blocks, backbone.preprocessing)
    arrays = jax.device_put((backbone.params, trained))
    found = []
    for name, pixels in with_progress(_read(source, decoding), len(source)):
        shown = _resized(pixels, options.short_side)
        _check_patches(shown.shape[:2], options.window, patch, name)
        of = _by_windows if options.window else _as_a_whole
        found.append(np.asarray(of(program, arrays, shown, pixels.shape[:2], options)))
    return found[0] if _is_one(pictures, source) else found


def _check(options: Options, form: Form) -> None:
    for name in ("short_side", "window"):
        px = getattr(options, name)
        if px < 0:
            raise EvaluationError(f"{name} is {px} px; give 0 for the whole picture as it is")
    if options.window and form.kind != "segmentation":
        raise EvaluationError("depth is predicted for a picture as a whole; leave out window")


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


def _resized(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """The picture as the model is given it, uint8 [h, w, C]: bilinear, without antialias."""
    height, width = pixels.shape[:2]
    factor = short_side / min(height, width) if short_side else 1.0
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if size == (width, height):
        return pixels
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size[::-1], pixels.shape[2])


def _check_patches(size: tuple[int, ...], window: int, patch_size: int, name: str) -> None:
    """Raises EvaluationError for more patches at once than fit."""
    height, width = (min(side, window or side) for side in size)
    patches = -(-height // patch_size) * -(-width // patch_size)
    if patches > MAX_PATCHES:
        raise EvaluationError(
            f"{name} has {width} x {height} px at once, that is {patches:,} patches, and more than "
            f"{MAX_PATCHES:,} do not fit; give short_side={_GOOD_SIDE_PX}, or for classes "
            f"window={_GOOD_SIDE_PX}"
        )


def _output(program: _Program, arrays: tuple, images: Array) -> Array:
    """Normalised [B, h, w, C] -> `head_output`."""
    params, trained = arrays
    norm = program.form.kind == "segmentation"
    levels = feature_levels(program.model, params, images, program.blocks, norm)
    return head_output(program.form, trained, levels)


@functools.partial(jax.jit, static_argnames=("program", "size", "options"))
def _as_a_whole(
    program: _Program, arrays: tuple, shown: Array, size: tuple[int, int], options: Options
) -> Array:
    """uint8 [h, w, C] -> classes uint8 or uint16 [H, W], or metres [H, W]."""
    given = program.preprocessing
    images = normalize(shown[None], given.mean, given.std)
    outputs = [_output(program, arrays, images)]
    if options.flip:
        outputs.append(_output(program, arrays, images[:, :, ::-1])[:, :, ::-1])
    if program.form.kind == "segmentation":
        return classes_at(outputs, size)
    return sum(at_size(program.form, x, size) for x in outputs)[0] / len(outputs)


def _by_windows(
    program: _Program, arrays: tuple, shown: np.ndarray, size: tuple[int, int], options: Options
) -> np.ndarray:
    """uint8 [h, w, C] -> classes [H, W], by windows that overlap by a third."""
    given = program.preprocessing
    image = np.asarray(normalize(jnp.asarray(shown), given.mean, given.std))
    views = [View(image)] + [View(image[:, ::-1], True)] * options.flip
    stride = max(1, 2 * options.window // 3)
    forward = functools.partial(_of_windows, program, arrays)
    return segment(forward, views, size, options.window, stride)


_of_windows = functools.partial(jax.jit, static_argnames="program")(_output)
