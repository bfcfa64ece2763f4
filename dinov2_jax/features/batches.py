"""Pictures of several sizes -> batches of one size and one of two fixed lengths."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax.data.stream import Picture


class Batch(NamedTuple):
    """Pictures of one size.

    Attributes:
      rows: row of each picture of the whole batch; slots after the last one are padding.
      images: uint8 [b, h, w, C], the slots of this process; black where there is no picture.
      readable: bool [b].
    """

    rows: list[int]
    images: np.ndarray
    readable: np.ndarray


def batches_by_size(pictures: Iterator[Picture], lengths: tuple[int, int]) -> Iterator[Batch]:
    """Puts every readable picture in one batch, together with pictures of its own size.

    A batch has the first length while there are enough pictures. The rest goes into batches of the
    second length, padded with black, so each size needs two programs and little padding.
    """
    full, short = lengths
    waiting: dict[tuple[int, ...], list[Picture]] = {}
    for row, image in pictures:
        if image is None:
            continue
        same = waiting.setdefault(image.shape, [])
        same.append((row, image))
        if len(same) == full:
            yield _stack(waiting.pop(image.shape), full, image.shape)
    for shape, same in waiting.items():
        for start in range(0, len(same), short):
            yield _stack(same[start : start + short], short, shape)


def batches_in_step(
    pictures: Iterator[Picture], count: int, length: int, slots: Sequence[int], shape: Sequence[int]
) -> Iterator[Batch]:
    """Divides pictures of one size among processes, so that all make the same number of batches.

    Args:
      pictures: those of this process, `own_rows(count, length, slots)`, in this order.
      count: pictures of all processes.
      length: slots of a whole batch.
      slots: those of this process.
      shape: of a picture, [h, w, C].
    """
    for start in range(0, count, length):
        rows = range(start, min(start + length, count))
        mine = sum(start + slot < count for slot in slots)
        batch = _stack(list(itertools.islice(pictures, mine)), len(slots), shape)
        yield batch._replace(rows=list(rows))


def own_rows(count: int, length: int, slots: Sequence[int]) -> np.ndarray:
    """The rows of this process, batch by batch; see `batches_in_step`."""
    rows = np.arange(-(-count // length))[:, None] * length + np.asarray(slots)
    return rows[rows < count]


def _stack(pictures: Sequence[Picture], length: int, shape: Sequence[int]) -> Batch:
    images, readable = np.zeros((length, *shape), np.uint8), np.zeros(length, bool)
    for slot, (_, image) in enumerate(pictures):
        if image is not None:
            images[slot], readable[slot] = image, True
    return Batch([row for row, _ in pictures], images, readable)
