"""Every picture once, in order, fitted to a backbone, with grain."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from dinov2_jax.data.decode import BadImage
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.loader import Batch, Reader, copy_batch, load_record
from dinov2_jax.data.sources.source import Source

# Pictures that a worker hands over at a time: an exchange between processes costs a millisecond.
_CHUNK = 16

Picture = tuple[int, np.ndarray | None]


def stream_pictures(
    source: Source,
    rows: np.ndarray,
    fit: Fit,
    *,
    max_pixels: int,
    workers: int,
    channels: int = 3,
) -> Iterator[Picture]:
    """The pictures `rows` of `source`, in this order.

    Args:
      source: pictures.
      rows: record numbers.
      fit: brings them to whole patches.
      max_pixels: larger pictures are unreadable.
      workers: loader processes; 0 works on a thread of this process.
      channels: of the pictures, see `dinov2_jax.data.decode.decode`.

    Yields:
      (row, uint8 [h, w, channels]); None instead of pixels where the picture cannot be read.
    """
    dataset = grain.MapDataset.source(_Chunks(rows)).map(
        _LoadChunk(source, fit, max_pixels, channels)
    )
    with contextlib.closing(Reader(dataset, workers)) as reader:
        for chunk in map(copy_batch, reader):
            yield from _apart(chunk, channels)


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Rows, _CHUNK at a time."""

    rows: np.ndarray

    def __len__(self) -> int:
        return -(-len(self.rows) // _CHUNK)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index * _CHUNK : (index + 1) * _CHUNK]


@dataclasses.dataclass(frozen=True)
class _LoadChunk(grain.transforms.Map):
    source: Source
    fit: Fit
    max_pixels: int
    channels: int

    def map(self, element: np.ndarray) -> Batch:
        images = [self._load(int(row)) for row in element]
        pixels = [image.reshape(-1) for image in images]
        return {
            "rows": np.asarray(element, np.int64),
            "shapes": np.array([image.shape[:2] for image in images], np.int64),
            # One byte more, as shared memory cannot be empty.
            "pixels": np.concatenate([*pixels, np.zeros(1, np.uint8)]),
        }

    def _load(self, row: int) -> np.ndarray:
        try:
            how = self.max_pixels, self.fit.decode_px, self.channels
            image = load_record(self.source, row, *how)
        except BadImage:
            return np.zeros((0, 0, self.channels), np.uint8)
        return self.fit(image)


def _apart(chunk: Batch, channels: int) -> Iterator[Picture]:
    start = 0
    for row, (height, width) in zip(chunk["rows"], chunk["shapes"], strict=True):
        stop = start + height * width * channels
        image = chunk["pixels"][start:stop].reshape(height, width, channels)
        yield int(row), (image if height else None)
        start = stop


def why_unreadable(source: Source, row: int, max_pixels: int, channels: int = 3) -> str:
    """The reason, found by reading the picture again."""
    try:
        load_record(source, row, max_pixels, None, channels)
    except BadImage as error:
        return str(error)
    return "unreadable at an earlier time"
