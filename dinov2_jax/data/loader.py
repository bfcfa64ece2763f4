"""From a source to training batches of uint8 crops, with masks or with labels, by grain.

Batch n is a pure function of (source, spec, n): grain derives the generator of every record and of
every group from its position. So neither the number of workers or processes nor the step at which
a run resumes changes anything. The loader's whole state is the number of pictures delivered.
"""

import dataclasses
import functools
import math
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from dinov2_jax.data.crops import sample_crops
from dinov2_jax.data.decode import WHOLE_RGB, BadImage, DecodeSpec, load_record
from dinov2_jax.data.masking import sample_masks
from dinov2_jax.data.reader import Batch, LoaderError, LostWorkerError, Reader, join
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

    @property
    def group_bytes(self) -> int:
        """Size of the crops of one group; masks and numbers are hardly more."""
        crops = self.crops
        pixels = 2 * crops.global_size**2 + crops.local_number * crops.local_size**2
        return self.group_size * pixels * self.decoding.channels


@dataclasses.dataclass(frozen=True)
class GroupsOfBatches:
    """The groups `share` of each batch of `groups` groups, from group `start_group` on."""

    dataset: grain.MapDataset
    groups: int
    share: tuple[int, ...]
    start_group: int

    def __len__(self) -> int:
        return len(self.dataset) // self.groups * len(self.share)

    def __getitem__(self, index: int) -> Batch:
        batch, place = divmod(index, len(self.share))
        return self.dataset[self.start_group + batch * self.groups + self.share[place]]


class BatchLoader:
    """Batches in order from group number `start_group` on, each joined from its groups `share`.

    If a worker is killed, all start again where the last batch ended.

    Attributes:
      next_group: the first group, of those of all processes, that is not delivered yet.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        groups: int,
        share: Sequence[int],
        start_group: int,
        workers: int,
        group_bytes: int,
    ) -> None:
        self._dataset, self._share, self._groups = dataset, tuple(share), groups
        self._workers, self._group_bytes = workers, group_bytes
        self.next_group, self._warnings = start_group, list[str]()
        self._failed_at = -1
        self._start()

    def _start(self) -> None:
        # Workers deliver groups, not batches: the first batch comes sooner and less is buffered.
        wanted = GroupsOfBatches(self._dataset, self._groups, self._share, self.next_group)
        source = grain.MapDataset.source(wanted)
        self._reader = Reader(source, self._workers, self._group_bytes, len(self._share))
        # For programs that end without closing the loader: grain tidies up too late then.
        self._close = weakref.finalize(self, self._reader.close)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            batch = join([next(self._reader) for _ in self._share])
        except LostWorkerError as error:
            if self._failed_at == self.next_group:  # no batch since the last time
                raise
            self._warnings.append(f"{error}; all were started again, and no picture is lost")
            self._failed_at = self.next_group
            self._close()
            self._start()
            return next(self)
        self.next_group += self._groups
        return batch

    def take_warnings(self) -> list[str]:
        """What was survived since the last call, one sentence each."""
        taken, self._warnings = self._warnings, []
        return taken

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
      start_image: pictures delivered before, in batches of any size; a multiple of the group size.
      share: numbers, in a batch, of the groups to deliver; None: all. With several processes, each
        loads only the groups of its own devices.
    """

    def __init__(
        self,
        source: Source,
        spec: BatchSpec,
        *,
        workers: int = 0,
        start_image: int = 0,
        share: Sequence[int] | None = None,
    ) -> None:
        order = grain.MapDataset.source(range(len(source))).seed(spec.seed).shuffle().repeat()
        crops = order.random_map(functools.partial(_make_crops, source, spec))
        dataset = crops.batch(spec.group_size, drop_remainder=True).random_map(
            functools.partial(_add_masks, spec)
        )
        groups = spec.batch_size // spec.group_size
        share = range(groups) if share is None else share
        self._group_size = spec.group_size
        start_group, rest = divmod(start_image, spec.group_size)
        if rest:
            raise LoaderError(
                f"the run has seen {start_image:,} pictures, which are no whole groups of "
                f"{spec.group_size}; use a --config.group_size that divides "
                f"{math.gcd(start_image, spec.batch_size)}"
            )
        super().__init__(dataset, groups, share, start_group, workers, spec.group_bytes)

    def state(self) -> dict[str, int]:
        """What a checkpoint stores: how many pictures were delivered, to all processes."""
        return {"next_image": self.next_group * self._group_size}


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
        part = batch_size // parts
        dataset, part_bytes = (
            order.random_map(crop).batch(part, drop_remainder=True),
            part * size**2 * decoding.channels,
        )
        super().__init__(dataset, parts, share, start_batch * parts, workers, part_bytes)


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
