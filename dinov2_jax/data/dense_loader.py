"""Batches of pictures with a target for every pixel, by grain."""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import grain
import numpy as np

from dinov2_jax.data.decode import WHOLE_RGB, BadImage, DecodeSpec, load_record
from dinov2_jax.data.loader import MAX_REPLACEMENTS, BatchLoader
from dinov2_jax.data.reader import Batch
from dinov2_jax.data.sources.source import Source, SourceError

# (generator of the record, uint8 [H, W, C], target [H, W]) -> the same of the fixed size.
Transform = Callable[[np.random.Generator, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Split(Protocol):
    """Pictures, and the target of each; picklable."""

    @property
    def pictures(self) -> Source: ...

    def __len__(self) -> int: ...

    def target(self, index: int) -> np.ndarray:
        """[H, W]. Raises SourceError where the file cannot be read."""


class DenseLoader(BatchLoader):
    """Endless batches {"images": uint8 [B, h, w, C], "targets": [B, h, w]}.

    Batch n is a function of (split, transform, seed, n) alone. Every pass over the pictures is
    shuffled anew; fewer than a batch are repeated. A record whose picture or target cannot be read,
    or that are of different sizes, is replaced by another one.

    Args:
      transform: draws a crop; picklable.
      size: h, w of its crops.
      batch_size: pictures, over all processes.
      workers: loader processes; 0 reads on a thread.
      start_batch: number of the first batch to deliver.
      parts, share: with several processes, each delivers only the parts `share` of the equal
        `parts` of every batch.

    Attributes:
      replaced: how many records were replaced in the batches so far.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        size: tuple[int, int],
        *,
        batch_size: int,
        decoding: DecodeSpec = WHOLE_RGB,
        seed: int = 0,
        workers: int = 0,
        start_batch: int = 0,
        parts: int = 1,
        share: Sequence[int] = (0,),
    ) -> None:
        crop = functools.partial(_crop, split, transform, size, decoding)
        order = grain.MapDataset.source(range(len(split))).seed(seed).shuffle().repeat()
        part = batch_size // parts
        part_bytes = part * size[0] * size[1] * (decoding.channels + 4)
        dataset = order.random_map(crop).batch(part, drop_remainder=True)
        super().__init__(dataset, parts, share, start_batch * parts, workers, part_bytes)
        self.replaced = 0

    def __next__(self) -> Batch:
        batch = super().__next__()
        if "replaced" in batch:  # after a lost worker, the call inside has taken it out
            self.replaced += int(batch.pop("replaced").sum())
        return batch


def _crop(
    split: Split,
    transform: Transform,
    size: tuple[int, int],
    decoding: DecodeSpec,
    row: int,
    rng: np.random.Generator,
) -> Batch:
    """One crop of record `row`, or of another one where that cannot be read."""
    row, why = int(row), ""
    for attempt in range(MAX_REPLACEMENTS + 1):
        try:
            image, target = transform(rng, *load_pair(split, row, decoding))
            if image.shape[:2] != size or target.shape != size:
                raise ValueError(f"a crop of {image.shape[:2]} in place of {size}")
            return {"images": image, "targets": target, "replaced": np.int32(attempt)}
        except (BadImage, SourceError) as error:
            why = str(error)
            row = int(rng.integers(len(split)))
    raise BadImage(f"{MAX_REPLACEMENTS + 1} records in a row cannot be read, the last one: {why}")


def load_pair(split: Split, row: int, decoding: DecodeSpec) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 [H, W, C], and its target [H, W].

    Raises BadImage or SourceError where one cannot be read, or they are of different sizes.
    """
    target = split.target(row)
    image = load_record(split.pictures, row, decoding)
    if image.shape[:2] != target.shape:
        raise BadImage(
            f"{split.pictures.name(row)} has {image.shape[1]} x {image.shape[0]} px, but its "
            f"target {target.shape[1]} x {target.shape[0]}"
        )
    return image, target
