"""A few pictures through a backbone, at their own shape: cls, patches and attention of a block."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.data.decode import BadImage, DecodeSpec, load_record
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.data.stream import eval_batches
from dinov2_jax.models.attention_maps import attention_maps
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.viz.canvas import resize

THUMB_PX = 128


class Picture(NamedTuple):
    """A picture as the model sees it: uint8 [H, W, 3], sides multiples of the patch."""

    name: str
    record: int
    pixels: np.ndarray


class Seen(NamedTuple):
    """What a model makes of a picture.

    Attributes:
      cls: [D], after the final norm.
      patches: [h, w, D], after the final norm.
      attention: [heads, h, w], from cls to each patch; sums to less than 1 a head.
    """

    cls: np.ndarray
    patches: np.ndarray
    attention: np.ndarray


class Album(NamedTuple):
    """Many pictures as squares of `side_px`.

    Attributes:
      features: [n, D], cls after the final norm.
      thumbs: uint8 [n, S, S, 3], what the model was given, resized.
      records: [n], of the source.
      side_px: of the model's input.
    """

    features: np.ndarray
    thumbs: np.ndarray
    records: np.ndarray
    side_px: int


def read_pictures(
    source: Source, records: Sequence[int], side_px: int, patch_px: int, max_pixels: int
) -> tuple[list[Picture], list[str]]:
    """Those of `records` that can be decoded, fitted to whole patches, and notes on the others."""
    pictures, notes = [], []
    for record in map(int, records):
        try:
            image = load_record(source, record, DecodeSpec(max_pixels, min_side_px=side_px))
        except BadImage as error:
            notes.append(f"warning: {source.name(record)} is left out: {error}")
            continue
        fitted = fit_to_patches(image, side_px, patch_px)
        pictures.append(Picture(source.name(record), record, fitted))
    return pictures, notes


def fit_to_patches(image: np.ndarray, side_px: int, patch_px: int) -> np.ndarray:
    """Shorter side to `side_px`, the longer one in proportion, rounded to whole patches.

    Nothing is cut, but for the ends of pictures more than twice as long as wide.
    """
    return Fit("resize", (side_px,), 0, patch_px)(image)


def look(
    model: VisionTransformer,
    params: Any,
    preprocessing: Preprocessing,
    pictures: Sequence[Picture],
    block: int = -1,
) -> Iterator[Seen]:
    """Features and attention of a block, one picture after the other; a compilation a shape.

    Raises:
      ValueError: for a block that does not exist.
    """
    block, first = block % model.depth, 1 + model.registers

    @jax.jit
    def forward(params: Any, pixels: Array) -> tuple[Array, Array]:
        images = normalize(pixels[None], preprocessing.mean, preprocessing.std)
        out = model.apply({"params": params}, images, intermediate=(block,))
        return out["blocks"][0][1][0], attention_maps(model, params, images, block)[0]

    for picture in pictures:
        rows, columns = (side // model.patch_size for side in picture.pixels.shape[:2])
        tokens, heads = (np.asarray(x, np.float32) for x in forward(params, picture.pixels))
        patches = tokens[first:].reshape(rows, columns, -1)
        yield Seen(tokens[0], patches, heads.reshape(-1, rows, columns))


def leaf_through(
    model: VisionTransformer,
    params: Any,
    preprocessing: Preprocessing,
    source: Source,
    records: Sequence[int],
    batch_size: int,
    max_pixels: int,
) -> Album:
    """cls features and thumbnails of many pictures, at the size that the weights expect.

    Pictures that cannot be decoded are left out.

    Raises:
      SourceError: where none can.
    """

    @jax.jit
    def forward(params: Any, pixels: Array) -> Array:
        images = normalize(pixels, preprocessing.mean, preprocessing.std)
        return model.apply({"params": params}, images)["cls"]

    features, thumbs, kept = [], [], []
    batches = eval_batches(
        source,
        records,
        batch_size=min(batch_size, len(records)),
        resize_size=preprocessing.resize_px,
        image_size=preprocessing.image_px,
        decoding=DecodeSpec(max_pixels),
    )
    for batch in batches:
        real = batch["index"] >= 0
        features.append(np.asarray(forward(params, jnp.asarray(batch["images"])))[real])
        kept.append(batch["index"][real])
        thumbs += [resize(image, THUMB_PX, THUMB_PX) for image in batch["images"][real]]
    if not thumbs:
        raise SourceError(f"none of the {len(records)} pictures can be decoded; name others")
    return Album(
        np.concatenate(features), np.stack(thumbs), np.concatenate(kept), preprocessing.image_px
    )
