"""Pictures of several sizes -> batches of one size and a fixed length each."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dinov2_jax.data.stream import Picture


class Batch(NamedTuple):
    """Pictures of one size; those behind `len(rows)` are padding."""

    rows: list[int]
    images: np.ndarray  # uint8 [B, h, w, C]


def batches_of(pictures: Iterator[Picture], lengths: tuple[int, int]) -> Iterator[Batch]:
    """Every readable picture in one batch, of the first length while there are enough.

    What remains at the end goes in batches of the second length, the last of each size filled up
    with black: two programs a size, and few pictures computed for nothing.
    """
    full, short = lengths
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for row, image in pictures:
        if image is None:
            continue
        same = waiting.setdefault(image.shape, [])
        same.append((row, image))
        if len(same) == full:
            yield _stack(waiting.pop(image.shape), full)
    for same in waiting.values():
        for start in range(0, len(same), short):
            yield _stack(same[start : start + short], short)


def _stack(pictures: list[tuple[int, np.ndarray]], length: int) -> Batch:
    images = np.zeros((length, *pictures[0][1].shape), np.uint8)
    for place, (_, image) in enumerate(pictures):
        images[place] = image
    return Batch([row for row, _ in pictures], images)
