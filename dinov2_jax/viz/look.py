"""Features of a few pictures in their own shape, and of many at the size of the weights."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from dinov2_jax.data.decode import BadImage, DecodeSpec, load_record
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.data.stream import Picture as StreamedPicture
from dinov2_jax.data.stream import stream_pictures
from dinov2_jax.errors import printable
from dinov2_jax.features.extractor import Extractor, with_progress
from dinov2_jax.features.request import Request, central_square
from dinov2_jax.models.attention_maps import attention_maps
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.viz.canvas import resize
from dinov2_jax.weights.load import Backbone

THUMB_PX = 128


class Picture(NamedTuple):
    """A picture as the model's input: uint8 [H, W, 3], sides multiples of the patch."""

    name: str
    record: int
    pixels: np.ndarray


class Seen(NamedTuple):
    """Features of a picture after the final norm, and its attention.

    Attributes:
      cls: [D].
      patches: [h, w, D].
      attention: [heads, h, w], from cls to each patch; the sum of a head is below 1.
    """

    cls: np.ndarray
    patches: np.ndarray
    attention: np.ndarray


class Album(NamedTuple):
    """Many pictures as squares.

    Attributes:
      features: [n, D], cls after the final norm.
      thumbs: uint8 [n, S, S, 3], the model's input, resized.
      records: [n], numbers in the source.
      side_px: of the model's input.
    """

    features: np.ndarray
    thumbs: np.ndarray
    records: np.ndarray
    side_px: int


def read_pictures(
    source: Source, records: Sequence[int], side_px: int, patch_px: int, max_pixels: int
) -> tuple[list[Picture], list[str]]:
    """Decodes records and fits them to whole patches; returns them, and notes on the others."""
    pictures, notes = [], []
    for record in map(int, records):
        try:
            image = load_record(source, record, DecodeSpec(max_pixels, min_side_px=side_px))
        except BadImage as error:
            notes.append(f"warning: {printable(source.name(record))} is left out: {error}")
            continue
        pixels = fit_to_patches(image, side_px, patch_px)
        pictures.append(Picture(printable(source.name(record)), record, pixels))
    return pictures, notes


def fit_to_patches(image: np.ndarray, side_px: int, patch_px: int) -> np.ndarray:
    """Resizes the shorter side to `side_px` and the longer one in proportion, to whole patches.

    It cuts only the ends of pictures that are more than twice as long as wide.
    """
    return Fit("resize", (side_px,), 0, patch_px)(image)


def look(backbone: Backbone, pictures: Sequence[Picture], block: int = -1) -> Iterator[Seen]:
    """Computes features and attention of a block, picture by picture."""
    model, block = backbone.model, block % backbone.model.depth
    fit = Fit("resize", (model.patch_size,), 0, model.patch_size)  # the pictures are fitted already
    columns = (("cls", "cls", block), ("patches", "patches", block))
    extractor = Extractor(backbone, Request(columns, True, fit), batch_size=1)
    params = jax.device_put(backbone.params)
    for picture in pictures:
        (seen,) = extractor.run(iter([(0, picture.pixels)]))
        patches = seen.columns["patches"][0].reshape(*seen.grid, -1)
        heads = _attention(params, picture.pixels, model, backbone.preprocessing, block)
        yield Seen(seen.columns["cls"][0], patches, np.asarray(heads).reshape(-1, *seen.grid))


@functools.partial(jax.jit, static_argnames=("model", "preprocessing", "block"))
def _attention(
    params: Any, pixels: Array, model: VisionTransformer, preprocessing: Preprocessing, block: int
) -> Array:
    """Attention from cls to the patches of a picture, [heads, P]."""
    images = normalize(pixels[None], preprocessing.mean, preprocessing.std)
    return attention_maps(model, params, images, block)[0]


def leaf_through(
    backbone: Backbone, source: Source, records: Sequence[int], batch_size: int, max_pixels: int
) -> Album:
    """Computes cls features and thumbnails of the pictures that can be decoded.

    Raises:
      SourceError: none can be decoded.
    """
    request = central_square(backbone.model, backbone.preprocessing)
    extractor = Extractor(backbone, request, batch_size=min(batch_size, len(records)))
    rows, decoding = np.asarray(records), DecodeSpec(max_pixels)
    read = stream_pictures(source, rows, request.fit, decoding=decoding, workers=0)
    thumbs: dict[int, np.ndarray] = {}

    def keep_thumbs(pictures: Iterator[StreamedPicture]) -> Iterator[StreamedPicture]:
        for record, image in pictures:
            if image is not None:
                thumbs[record] = resize(image, THUMB_PX, THUMB_PX)
            yield record, image

    with contextlib.closing(read):
        pictures = with_progress(keep_thumbs(read), len(records))
        parts = [(c.rows, c.columns["cls"]) for c in extractor.run(pictures)]
    if not parts:
        raise SourceError(f"none of the {len(records)} pictures can be decoded; name others")
    kept, features = (np.concatenate(part) for part in zip(*parts, strict=True))
    side_px = backbone.preprocessing.image_px
    return Album(features, np.stack([thumbs[record] for record in kept]), kept, side_px)
