"""From a source to batches of uint8 crops and masks, with grain.

Batch number n is a pure function of (source, specs, seed, n): grain derives the generator of every
record and of every batch from its position, so neither the number of workers nor the step at which
a run resumes changes anything. The loader's whole state is the number of the next batch.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from dinov2_jax.data.crops import center_crop, sample_crops
from dinov2_jax.data.decode import BadImage, decode
from dinov2_jax.data.masking import sample_masks
from dinov2_jax.data.sources import Source

Batch = dict[str, np.ndarray]
# How often a record that cannot be decoded is replaced by another one before a black picture.
MAX_REPLACEMENTS = 8


@dataclasses.dataclass(frozen=True)
class CropSpec:
    """Two global and `local_number` local crops: sides in px, scales as shares of the area."""

    global_size: int
    global_scale: tuple[float, float]
    local_size: int
    local_scale: tuple[float, float]
    local_number: int


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Block masks on global crops: share of crops masked, least and greatest masked share."""

    patch_size: int
    probability: float
    ratio: tuple[float, float]


def load_record(source: Source, index: int, max_pixels: int, min_side_px: int | None) -> np.ndarray:
    """Record `index` as uint8 [H, W, 3].

    Raises:
      BadImage: when it cannot be read or decoded; the text says why.
    """
    try:
        record = source[index]
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    if isinstance(record, np.ndarray):
        return record
    return decode(record, max_pixels, min_side_px)


@dataclasses.dataclass(frozen=True)
class _MakeCrops(grain.transforms.RandomMap):
    source: Source
    crops: CropSpec
    max_pixels: int

    def random_map(self, element: int, rng: np.random.Generator) -> Batch:
        image, record, bad = self._load(int(element), rng)
        spec = self.crops
        return {
            "global_crops": sample_crops(rng, image, 2, spec.global_size, spec.global_scale),
            "local_crops": sample_crops(
                rng, image, spec.local_number, spec.local_size, spec.local_scale
            ),
            "record": np.int64(record),
            "bad_records": bad,
        }

    def _load(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray]:
        """The picture, the record it came from, and the bad records met before it (-1: none)."""
        bad = np.full(MAX_REPLACEMENTS, -1, np.int64)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                # The smallest crop takes sqrt(0.05) = 0.22 of the side; 2 x local_size / 0.22 is
                # more pixels than any crop of either kind can show.
                side = max(2 * self.crops.global_size, 5 * self.crops.local_size)
                return load_record(self.source, index, self.max_pixels, side), index, bad
            except BadImage:
                bad[attempt] = index
                index = int(rng.integers(len(self.source)))
        side = self.crops.global_size
        return np.zeros((side, side, 3), np.uint8), -1, bad


@dataclasses.dataclass(frozen=True)
class _AddMasks(grain.transforms.RandomMap):
    group_size: int
    grid: tuple[int, int]
    masks: MaskSpec

    def random_map(self, element: Batch, rng: np.random.Generator) -> Batch:
        groups = len(element["record"]) // self.group_size
        spec = self.masks
        drawn = [
            sample_masks(rng, self.group_size, self.grid, spec.probability, spec.ratio)
            for _ in range(groups)
        ]
        masks, indices, weights = zip(*drawn, strict=True)
        return {
            **element,
            "masks": np.concatenate(masks),
            "mask_indices": np.stack(indices),
            "mask_weights": np.stack(weights),
        }


class TrainLoader:
    """Endless batches for training; reshuffles every pass over the source.

    Args:
      source: pictures; fewer than a batch are repeated.
      batch_size, group_size: images a batch, images a statistical group (divides the batch).
      seed: of order, crops and masks.
      workers: loader processes; 0 works in this process (on two threads).
      max_pixels: larger pictures are bad records.
      start_batch: number of the first batch to deliver.
    """

    def __init__(
        self,
        source: Source,
        crops: CropSpec,
        masks: MaskSpec,
        *,
        batch_size: int,
        group_size: int,
        seed: int,
        workers: int,
        max_pixels: int,
        start_batch: int = 0,
    ) -> None:
        side = crops.global_size // masks.patch_size
        dataset = (
            grain.MapDataset.source(range(len(source)))
            .seed(seed)
            .shuffle()
            .repeat()
            .random_map(_MakeCrops(source, crops, max_pixels))
            .batch(batch_size)
            .random_map(_AddMasks(group_size, (side, side), masks))
        )
        self._next = start_batch
        self._iterator: Any = iter(_parallel(dataset[start_batch:], workers))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        # A copy, because grain's arrays lie in shared memory, which is lost to the machine where an
        # array is still referenced when the interpreter ends.
        batch = {name: np.array(value) for name, value in next(self._iterator).items()}
        self._next += 1
        return batch

    def state(self) -> dict[str, int]:
        """What a checkpoint stores: the number of the next batch."""
        return {"next_batch": self._next}

    def close(self) -> None:
        """Ends the worker processes and frees their shared memory; no batch can follow."""
        iterator, self._iterator = self._iterator, iter(())
        iterator.close()


def _parallel(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Reads ahead on threads, in `workers` processes if any."""
    if not flags.FLAGS.is_parsed():  # grain starts no process before absl's flags are parsed
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    reading = dataset.to_iter_dataset(options)
    if not workers:
        return reading
    return reading.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))


def eval_batches(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    resize_size: int,
    image_size: int,
    max_pixels: int,
    workers: int = 0,
) -> Iterator[Batch]:
    """Pictures for evaluation: shorter side to `resize_size`, central square of `image_size`.

    Yields:
      {"images": uint8 [batch_size, S, S, 3], "index": int64 [batch_size]}; index is -1 in the
      padding of the last batch and for pictures that cannot be decoded.
    """
    count = -(-len(indices) // batch_size) * batch_size
    padded = np.full(count, -1, np.int64)
    padded[: len(indices)] = indices
    dataset = (
        grain.MapDataset.source(padded)
        .map(_LoadForEvaluation(source, resize_size, image_size, max_pixels))
        .batch(batch_size)
    )
    iterator = iter(_parallel(dataset, workers))
    yield from iterator
    if hasattr(iterator, "close"):
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _LoadForEvaluation(grain.transforms.Map):
    source: Source
    resize_size: int
    image_size: int
    max_pixels: int

    def map(self, element: int) -> Batch:
        index = int(element)
        try:
            if index < 0:
                raise BadImage("padding")
            image = load_record(self.source, index, self.max_pixels, self.resize_size)
        except BadImage:
            side = self.image_size
            return {"images": np.zeros((side, side, 3), np.uint8), "index": np.int64(-1)}
        return {
            "images": center_crop(image, self.resize_size, self.image_size),
            "index": np.int64(index),
        }
