"""Every picture once, in order, fitted to a backbone, with grain."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import grain
import numpy as np

from dinov2_jax.data.decode import BadImage, DecodeSpec, load_record
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.reader import Batch, Reader, join
from dinov2_jax.data.sources.source import Source

# Pictures that a worker hands over at a time: an exchange between processes costs a millisecond.
_CHUNK = 16

Picture = tuple[int, np.ndarray | None]


def stream_pictures(
    source: Source, rows: np.ndarray, fit: Fit, *, decoding: DecodeSpec, workers: int
) -> Iterator[Picture]:
    """Yields (row, uint8 [h, w, channels]) of the records `rows`, in this order.

    A picture that cannot be read has None instead of pixels. `fit` replaces `decoding.min_side_px`.
    `workers` is the number of loader processes; 0 works on a thread of this process.
    """
    decoding = dataclasses.replace(decoding, min_side_px=fit.decode_px)
    load = functools.partial(_load_chunk, source, fit, decoding)
    dataset = grain.MapDataset.source(rows).batch(_CHUNK).map(load)
    chunk_bytes = _CHUNK * fit.most_pixels * decoding.channels
    with contextlib.closing(Reader(dataset, workers, chunk_bytes)) as reader:
        # map gives grain's own arrays no name, under which they would outlive close().
        for chunk in map(lambda chunk: join([chunk]), reader):
            yield from _split(chunk, decoding.channels)


def _load_chunk(source: Source, fit: Fit, decoding: DecodeSpec, rows: np.ndarray) -> Batch:
    images = []
    for row in rows.tolist():
        try:
            images.append(fit(load_record(source, row, decoding)))
        except BadImage:
            images.append(np.zeros((0, 0, decoding.channels), np.uint8))
    pixels = [image.reshape(-1) for image in images]
    return {
        "rows": np.asarray(rows, np.int64),
        "shapes": np.array([image.shape[:2] for image in images], np.int64),
        # One byte more, because shared memory cannot be empty.
        "pixels": np.concatenate([*pixels, np.zeros(1, np.uint8)]),
    }


def _split(chunk: Batch, channels: int) -> Iterator[Picture]:
    start = 0
    for row, (height, width) in zip(chunk["rows"], chunk["shapes"], strict=True):
        stop = start + height * width * channels
        image = chunk["pixels"][start:stop].reshape(height, width, channels)
        yield int(row), (image if height else None)
        start = stop
