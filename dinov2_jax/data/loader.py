"""From a source to training batches of uint8 crops and masks, with grain.

Batch n is a pure function of (source, spec, n): grain derives the generator of every record and of
every group from its position. So neither the number of workers or processes nor the step at which
a run resumes changes anything. The loader's whole state is the number of the next batch.
"""

import dataclasses
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from dinov2_jax.data.crops import sample_crops
from dinov2_jax.data.decode import BadImage, DecodeSpec, load_record
from dinov2_jax.data.masking import sample_masks
from dinov2_jax.data.reader import Batch, GroupsOfBatches, Reader, join
from dinov2_jax.data.sources.source import Source

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

    @property
    def decode_px(self) -> int:
        """The shorter side that a JPEG must keep when it is decoded smaller.

        Every crop remains more than twice the size of its output: the smallest local crop takes
        sqrt(0.05) = 0.22 of a side, the smallest global one 0.57. The crops then differ by 0.4 of
        255 from those of the whole picture.
        """
        return max(5 * self.global_size // 2, 6 * self.local_size)


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Block masks on global crops: share of crops masked, least and greatest masked share."""

    patch_size: int
    probability: float
    ratio: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """All that makes a training batch out of a source."""

    crops: CropSpec
    masks: MaskSpec
    decoding: DecodeSpec
    batch_size: int  # images
    group_size: int  # images a statistical group; divides the batch
    seed: int  # of order, crops and masks

    @property
    def groups(self) -> int:
        return self.batch_size // self.group_size


class TrainLoader:
    """Endless batches for training; reshuffles every pass over the source.

    Args:
      source: pictures; fewer than a batch are repeated.
      workers: loader processes; 0 works in this process (on two threads).
      start_batch: number of the first batch to deliver.
      share: numbers, in a batch, of the groups to deliver; None: all. With several processes, each
        loads only the groups of its own devices.
    """

    def __init__(
        self,
        source: Source,
        spec: BatchSpec,
        *,
        workers: int = 0,
        start_batch: int = 0,
        share: Sequence[int] | None = None,
    ) -> None:
        order = grain.MapDataset.source(range(len(source))).seed(spec.seed).shuffle().repeat()
        crops = order.random_map(_MakeCrops(source, spec)).batch(spec.group_size)
        dataset = crops.random_map(_AddMasks(spec))
        # Workers deliver groups, not batches: the first batch comes sooner and less is buffered.
        share = tuple(range(spec.groups) if share is None else share)
        self._groups, self._next = len(share), start_batch
        groups = GroupsOfBatches(dataset, spec.groups, share, start_batch)
        self._reader = Reader(grain.MapDataset.source(groups), workers)
        # For programs that end without closing the loader: grain tidies up too late then.
        self._close = weakref.finalize(self, self._reader.close)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; G groups, B images, V local views, P patches, M mask slots.

        Returns:
          global_crops uint8 [B, 2, S, S, C], local_crops uint8 [B, V, s, s, C]; masks bool
          [B, 2, P], mask_indices int32 [G, M], mask_weights float32 [G, M], see `sample_masks`;
          record int64 [B] and bad_records int64 [B, MAX_REPLACEMENTS], for `BadRecords`.
        """
        batch = join([next(self._reader) for _ in range(self._groups)])
        self._next += 1
        return batch

    def state(self) -> dict[str, int]:
        """What a checkpoint stores: the number of the next batch."""
        return {"next_batch": self._next}

    def close(self) -> None:
        """Ends the worker processes and frees their shared memory; no batch can follow."""
        self._close()


@dataclasses.dataclass(frozen=True)
class _MakeCrops(grain.transforms.RandomMap):
    """Record number -> the crops of one image."""

    source: Source
    spec: BatchSpec

    def random_map(self, element: int, rng: np.random.Generator) -> Batch:
        image, record, bad = self._load(int(element), rng)
        spec = self.spec.crops
        large = sample_crops(rng, image, 2, spec.global_size, spec.global_scale)
        small = sample_crops(rng, image, spec.local_number, spec.local_size, spec.local_scale)
        crops = {"global_crops": large, "local_crops": small}
        return {**crops, "record": np.int64(record), "bad_records": bad}

    def _load(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray]:
        """The picture, the record it came from, and the bad records met before it (-1: none)."""
        bad = np.full(MAX_REPLACEMENTS, -1, np.int64)
        spec = dataclasses.replace(self.spec.decoding, min_side_px=self.spec.crops.decode_px)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return load_record(self.source, index, spec), index, bad
            except BadImage:
                bad[attempt] = index
                index = int(rng.integers(len(self.source)))
        return np.zeros((16, 16, spec.channels), np.uint8), -1, bad


@dataclasses.dataclass(frozen=True)
class _AddMasks(grain.transforms.RandomMap):
    """Draws the masks of one group; its generator depends on the seed and the group's number."""

    spec: BatchSpec

    def random_map(self, element: Batch, rng: np.random.Generator) -> Batch:
        spec = self.spec.masks
        side = self.spec.crops.global_size // spec.patch_size
        masks, indices, weights = sample_masks(
            rng, self.spec.group_size, (side, side), spec.probability, spec.ratio
        )
        # One row a group, because groups are concatenated to a batch.
        slots = {"mask_indices": indices[None], "mask_weights": weights[None]}
        return {**element, "masks": masks, **slots}
