"""From a source to training batches of uint8 crops, with masks or with labels, by grain.

Batch n is a pure function of (source, spec, n): grain derives the generator of every record and of
every group from its position. So neither the number of workers or processes nor the step at which
a run resumes changes anything. The loader's whole state is the number of the next batch.
"""

import dataclasses
import functools
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from dinov2_jax.data.crops import sample_crops
from dinov2_jax.data.decode import WHOLE_RGB, BadImage, DecodeSpec, load_record
from dinov2_jax.data.masking import sample_masks
from dinov2_jax.data.reader import Batch, Reader, join
from dinov2_jax.data.sources.source import Source

# How often a record that cannot be decoded is replaced by another one before a black picture.
MAX_REPLACEMENTS = 8
_LABELLED_SCALE = (0.08, 1.0)  # share of a labelled picture's area that a crop takes


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


@dataclasses.dataclass(frozen=True)
class GroupsOfBatches:
    """The groups `share` of every batch from `start_batch` on, in order, by random access."""

    dataset: grain.MapDataset
    groups: int
    share: tuple[int, ...]
    start_batch: int

    def __len__(self) -> int:
        return len(self.dataset) // self.groups * len(self.share)

    def __getitem__(self, index: int) -> Batch:
        batch, place = divmod(index, len(self.share))
        return self.dataset[(self.start_batch + batch) * self.groups + self.share[place]]


class BatchLoader:
    """Batches in order from number `start_batch` on, each joined from its groups `share`."""

    def __init__(
        self,
        dataset: grain.MapDataset,
        groups: int,
        share: Sequence[int],
        start_batch: int,
        workers: int,
    ) -> None:
        # Workers deliver groups, not batches: the first batch comes sooner and less is buffered.
        wanted = GroupsOfBatches(dataset, groups, tuple(share), start_batch)
        self._groups, self._next = len(share), start_batch
        self._reader = Reader(grain.MapDataset.source(wanted), workers)
        # For programs that end without closing the loader: grain tidies up too late then.
        self._close = weakref.finalize(self, self._reader.close)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = join([next(self._reader) for _ in range(self._groups)])
        self._next += 1
        return batch

    def state(self) -> dict[str, int]:
        """What a checkpoint stores: the number of the next batch."""
        return {"next_batch": self._next}

    def close(self) -> None:
        """Ends the worker processes and frees their shared memory; no batch can follow."""
        self._close()


class TrainLoader(BatchLoader):
    """Endless batches for training; reshuffles every pass over the source.

    With G groups, B images, V local views, P patches and M mask slots, a batch has global_crops
    uint8 [B, 2, S, S, C], local_crops uint8 [B, V, s, s, C]; masks bool [B, 2, P], mask_indices
    int32 [G, M], mask_weights float32 [G, M], see `sample_masks`; record int64 [B] and bad_records
    int64 [B, MAX_REPLACEMENTS], for `BadRecords`.

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
        crops = order.random_map(functools.partial(_make_crops, source, spec))
        dataset = crops.batch(spec.group_size).random_map(functools.partial(_add_masks, spec))
        groups = spec.batch_size // spec.group_size
        share = range(groups) if share is None else share
        super().__init__(dataset, groups, share, start_batch, workers)


def _make_crops(source: Source, spec: BatchSpec, index: int, rng: np.random.Generator) -> Batch:
    """Record number -> the crops of one image."""
    image, record, bad = _load(source, spec, int(index), rng)
    of = spec.crops
    large = sample_crops(rng, image, 2, of.global_size, of.global_scale)
    small = sample_crops(rng, image, of.local_number, of.local_size, of.local_scale)
    crops = {"global_crops": large, "local_crops": small}
    return {**crops, "record": np.int64(record), "bad_records": bad}


def _load(
    source: Source, spec: BatchSpec, index: int, rng: np.random.Generator
) -> tuple[np.ndarray, int, np.ndarray]:
    """The picture, the record it came from, and the bad records met before it (-1: none)."""
    bad = np.full(MAX_REPLACEMENTS, -1, np.int64)
    decoding = dataclasses.replace(spec.decoding, min_side_px=spec.crops.decode_px)
    for attempt in range(MAX_REPLACEMENTS):
        try:
            return load_record(source, index, decoding), index, bad
        except BadImage:
            bad[attempt] = index
            index = int(rng.integers(len(source)))
    return np.zeros((16, 16, decoding.channels), np.uint8), -1, bad


def _add_masks(spec: BatchSpec, group: Batch, rng: np.random.Generator) -> Batch:
    """Draws the masks of one group; its generator depends on the seed and the group's number."""
    side = spec.crops.global_size // spec.masks.patch_size
    masks, indices, weights = sample_masks(
        rng, spec.group_size, (side, side), spec.masks.probability, spec.masks.ratio
    )
    # One row a group, because groups are concatenated to a batch.
    slots = {"mask_indices": indices[None], "mask_weights": weights[None]}
    return {**group, "masks": masks, **slots}


class LabelledLoader(BatchLoader):
    """Endless batches {"images": uint8 [B, S, S, C], "labels": int32 [B], "records": int64 [B]}.

    Batch n is a function of (source, settings, seed, n) alone. Every pass over the pictures is
    shuffled anew; fewer than a batch are repeated. A picture that cannot be read is replaced by
    another one, with that one's label.

    Args:
      labels: class of every record [len(source)], -1 for those to leave out.
      batch_size: images; size: side of the crop in px.
      decoding: the loader itself sets its `min_side_px`.
      workers: loader processes; 0 reads on a thread.
      start_batch: number of the first batch to deliver.
      parts, share: with several processes, each delivers only the parts `share` of the equal
        `parts` of every batch.
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray,
        *,
        batch_size: int,
        size: int,
        decoding: DecodeSpec = WHOLE_RGB,
        seed: int = 0,
        workers: int = 0,
        start_batch: int = 0,
        parts: int = 1,
        share: Sequence[int] = (0,),
    ) -> None:
        records = np.flatnonzero(labels >= 0)
        # As in CropSpec.decode_px: the smallest crop keeps more than twice the size of its output.
        side_px = int(2 * size / _LABELLED_SCALE[0] ** 0.5)
        decoding = dataclasses.replace(decoding, min_side_px=side_px)
        crop = functools.partial(_crop, source, records, labels, size, decoding)
        order = grain.MapDataset.source(range(len(records))).seed(seed).shuffle().repeat()
        dataset = order.random_map(crop).batch(batch_size // parts)
        super().__init__(dataset, parts, share, start_batch, workers)


def _crop(
    source: Source,
    records: np.ndarray,
    labels: np.ndarray,
    size: int,
    decoding: DecodeSpec,
    place: int,
    rng: np.random.Generator,
) -> Batch:
    """One crop of record records[place], or of another one where that cannot be read."""
    for _ in range(MAX_REPLACEMENTS + 1):
        record = int(records[place])
        try:
            image = load_record(source, record, decoding)
            crop = sample_crops(rng, image, 1, size, _LABELLED_SCALE)[0]
            return {"images": crop, "labels": np.int32(labels[record]), "records": np.int64(record)}
        except BadImage:
            place = int(rng.integers(len(records)))
    raise BadImage(
        f"{MAX_REPLACEMENTS + 1} pictures in a row cannot be read, the last of them "
        f"{source.name(record)}; check the data set"
    )
