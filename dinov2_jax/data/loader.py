"""From a source to batches of uint8 crops and masks, with grain.

Batch number n is a pure function of (source, specs, seed, n): grain derives the generator of every
record and of every group from its position, so neither the number of workers or processes nor the
step at which a run resumes changes anything. The loader's whole state is the number of the next
batch.
"""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from dinov2_jax.data.crops import center_crop, sample_crops
from dinov2_jax.data.decode import BadImage, decode, to_channels
from dinov2_jax.data.masking import sample_masks
from dinov2_jax.data.sources.source import Source

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
    channels: int = 3


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Block masks on global crops: share of crops masked, least and greatest masked share."""

    patch_size: int
    probability: float
    ratio: tuple[float, float]


def decode_side(crops: CropSpec) -> int:
    """The shorter side in px that a JPEG must keep when it is decoded smaller.

    Every crop remains more than twice the size of its output: the least local crop takes
    sqrt(0.05) = 0.22 of a side, the least global one 0.57. The crops then differ by 0.4 of 255 from
    those of the whole picture.
    """
    return max(5 * crops.global_size // 2, 6 * crops.local_size)


def load_record(
    source: Source, index: int, max_pixels: int, min_side_px: int | None, channels: int = 3
) -> np.ndarray:
    """Record `index` as uint8 [H, W, channels].

    Raises:
      BadImage: when it cannot be read or decoded; the text says why.
    """
    try:
        record = source[index]
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    if isinstance(record, np.ndarray):
        return to_channels(record, channels)
    return decode(record, max_pixels, min_side_px, channels)


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
        how = self.max_pixels, decode_side(self.crops), self.crops.channels
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return load_record(self.source, index, *how), index, bad
            except BadImage:
                bad[attempt] = index
                index = int(rng.integers(len(self.source)))
        return np.zeros((16, 16, self.crops.channels), np.uint8), -1, bad


@dataclasses.dataclass(frozen=True)
class _AddMasks(grain.transforms.RandomMap):
    """Draws the masks of one group; its generator depends on the seed and the group's number."""

    group_size: int
    grid: tuple[int, int]
    masks: MaskSpec

    def random_map(self, element: Batch, rng: np.random.Generator) -> Batch:
        spec = self.masks
        masks, indices, weights = sample_masks(
            rng, self.group_size, self.grid, spec.probability, spec.ratio
        )
        # one row a group: groups are concatenated to a batch
        return {
            **element,
            "masks": masks,
            "mask_indices": indices[None],
            "mask_weights": weights[None],
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
      share: numbers, in a batch, of the groups to deliver; None: all. One of several processes
        loads those of its devices only.
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
        share: Sequence[int] | None = None,
    ) -> None:
        side = crops.global_size // masks.patch_size
        dataset = (
            grain.MapDataset.source(range(len(source)))
            .seed(seed)
            .shuffle()
            .repeat()
            .random_map(_MakeCrops(source, crops, max_pixels))
            .batch(group_size)
            .random_map(_AddMasks(group_size, (side, side), masks))
        )
        # Workers deliver groups, not batches: the first batch comes sooner and less is buffered.
        groups = batch_size // group_size
        share = range(groups) if share is None else share
        self._groups, self._next = len(share), start_batch
        source_of_groups = GroupsOfBatches(dataset, groups, tuple(share), start_batch)
        self._reader = Reader(grain.MapDataset.source(source_of_groups), workers)
        # Also at the end of a program that does not close: grain's own tidying comes too late then.
        self._close = weakref.finalize(self, self._reader.close)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        groups = [next(self._reader) for _ in range(self._groups)]
        batch = {name: _join([group[name] for group in groups]) for name in groups[0]}
        self._next += 1
        return batch

    def state(self) -> dict[str, int]:
        """What a checkpoint stores: the number of the next batch."""
        return {"next_batch": self._next}

    def close(self) -> None:
        """Ends the worker processes and frees their shared memory; no batch can follow."""
        self._close()


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


def copy_batch(batch: Batch) -> Batch:
    """The batch in memory of its own, see `_join`."""
    return {name: _join([value]) for name, value in batch.items()}


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One array of grain's, and a copy: grain's lie in shared memory.

    A block of it that is still referenced when the interpreter ends is lost to the machine.
    """
    return np.concatenate([part.view(np.ndarray) for part in parts])


class Reader:
    """A dataset's elements in order, read ahead in `workers` processes, or on a thread if 0."""

    def __init__(self, dataset: grain.MapDataset, workers: int) -> None:
        if not flags.FLAGS.is_parsed():  # grain starts no process before absl's flags are parsed
            flags.FLAGS.mark_as_parsed()
        reading = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        if workers:
            # BLAS reads this when a worker loads numpy; its threads would only fight for cores.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            options = grain.MultiprocessingOptions(num_workers=workers)
            reading = reading.mp_prefetch(options, worker_init_fn=_start_worker)
        self._workers, self._delivered = workers, 0
        self._iterator: Any = iter(reading)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._delivered += 1
        return next(self._iterator)

    def close(self) -> None:
        """Ends the processes and waits until the shared memory of their arrays is freed."""
        # grain starts all workers at the first element, but ends only those that have delivered
        # one: the others would go on, and their arrays stay in /dev/shm.
        with contextlib.suppress(Exception):  # a worker that failed has ended, too
            while 0 < self._delivered < self._workers:
                next(self)
        self._iterator.close()
        self._iterator = iter(())  # grain's objects complain if the interpreter's end meets them
        # The thread that frees arrays is a daemon: what it has not done when the interpreter ends
        # is left in /dev/shm, and Python's resource tracker complains.
        pool = getattr(SharedMemoryArray, "_del_thread_pool", None)
        if pool is not None:
            gc.collect()
            with contextlib.suppress(ValueError):  # the interpreter has ended the thread
                pool.apply(int)  # one thread works in order, so all before this is done


def _start_worker(worker: int, workers: int) -> None:
    """Lets the main process alone decide when to stop: it saves first, and needs batches to do so.

    Ctrl-C and a scheduler's SIGTERM reach every process of a job. If the main process is killed,
    its workers end too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def eval_batches(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    resize_size: int,
    image_size: int,
    max_pixels: int,
    channels: int = 3,
    workers: int = 0,
) -> Iterator[Batch]:
    """Pictures for evaluation: shorter side to `resize_size`, central square of `image_size`.

    Yields:
      {"images": uint8 [batch_size, S, S, channels], "index": int64 [batch_size]}; index is -1 in
      the padding of the last batch and for pictures that cannot be decoded.
    """
    count = -(-len(indices) // batch_size) * batch_size
    padded = np.full(count, -1, np.int64)
    padded[: len(indices)] = indices
    dataset = (
        grain.MapDataset.source(padded)
        .map(_LoadForEvaluation(source, resize_size, image_size, max_pixels, channels))
        .batch(batch_size)
    )
    # closing: also where the consumer stops before the last batch
    with contextlib.closing(Reader(dataset, workers)) as reader:
        # map gives grain's own arrays no name, under which they would outlive close().
        yield from map(copy_batch, reader)


@dataclasses.dataclass(frozen=True)
class _LoadForEvaluation(grain.transforms.Map):
    source: Source
    resize_size: int
    image_size: int
    max_pixels: int
    channels: int

    def map(self, element: int) -> Batch:
        index = int(element)
        try:
            if index < 0:
                raise BadImage("padding")
            how = self.max_pixels, 2 * self.resize_size, self.channels
            image = load_record(self.source, index, *how)
        except BadImage:
            shape = self.image_size, self.image_size, self.channels
            return {"images": np.zeros(shape, np.uint8), "index": np.int64(-1)}
        return {
            "images": center_crop(image, self.resize_size, self.image_size),
            "index": np.int64(index),
        }
