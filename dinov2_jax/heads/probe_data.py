"""What classifiers are trained on: checked features and labels, few shots, batches of pictures."""

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jax.sharding import Mesh

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.loader import LabelledLoader
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import Source
from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.grid import Grid, check_rows
from dinov2_jax.heads.linear import HeadColumns
from dinov2_jax.parallel.placement import local_groups, put_batch
from dinov2_jax.run.resume import StateFile


def check_training(columns: HeadColumns, labels: np.ndarray, classes: int, grid: Grid) -> None:
    """Refuses, by an EvaluationError, rows, columns or classes that do not fit together."""
    check_rows(columns, labels, grid)
    check_classes(labels, classes)


def check_classes(labels: np.ndarray, classes: int) -> None:
    """Refuses, by an EvaluationError, a class without pictures, and labels beyond the classes."""
    present = np.unique(labels)
    outside = present[(present < 0) | (present >= classes)]
    if len(outside):
        raise EvaluationError(
            f"label {outside[0]} is not one of {classes} classes, 0 to {classes - 1}; check the "
            "label file, or give the right number of classes"
        )
    missing = np.setdiff1d(np.arange(classes), present)
    if len(missing):
        raise EvaluationError(
            f"class {missing[0]} has no picture in the training set ({len(missing)} of {classes} "
            "have none); number the classes without gaps or use a complete training set"
        )


def check_finite(columns: HeadColumns, rows: int = 65536) -> None:
    """Refuses NaN and infinity, which one picture would spread to all classifiers.

    Raises EvaluationError, naming the first row that has one.
    """
    for place, column in enumerate(columns):
        for start in range(0, len(column), rows):
            good = np.isfinite(np.asarray(column[start : start + rows])).all(axis=1)
            if not good.all():
                row = start + int(np.argmin(good))
                raise EvaluationError(
                    f"row {row} in column {place} of the features is not finite; leave out "
                    "pictures that could not be read, or extract the features again"
                )


def checksum(arrays: Sequence[np.ndarray]) -> str:
    """Sums up shapes and some values: 1024 rows spread over each array."""
    found = 0
    for array in arrays:
        step = max(1, len(array) // 1024)
        found = zlib.crc32(np.ascontiguousarray(array[::step]).tobytes(), found)
        found = zlib.crc32(repr((array.shape, str(array.dtype))).encode(), found)
    return f"{found:08x}"


def state_file(
    folder: Path | None, name: str, settings: Any, labels: np.ndarray, about: Mapping[str, Any]
) -> StateFile:
    """The file of a run's state; folder None stores nothing.

    A stored state is refused where labels, `about` or any setting but `save_every` is another.
    """
    known = dataclasses.asdict(settings) | {"labels": checksum([np.asarray(labels, np.int32)])}
    known.pop("save_every")
    return StateFile(None if folder is None else Path(folder) / name, {**known, **about})


def draw_examples(labels: np.ndarray, n_per_class: int, seed: int) -> np.ndarray:
    """Draws the rows of `n_per_class` random examples of every class, or all of a rarer one.

    The classes are those that occur in `labels` [n].
    """
    # DINOv2: numpy draws the examples of a try, the reference torch, so single tries differ.
    rng = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    rows = [rng.permutation(part)[:n_per_class] for part in np.split(order, ends)]
    return np.concatenate(rows)


def check_labels(source: Source, labels: np.ndarray, classes: int) -> None:
    """Refuses, by an EvaluationError, labels not one a picture, and those of `check_classes`."""
    if len(labels) != len(source):
        raise EvaluationError(
            f"{len(labels)} labels for {len(source)} pictures; give one label a picture, -1 for "
            "those to leave out"
        )
    check_classes(labels[labels >= 0], classes)


@contextlib.contextmanager
def labelled_batches(
    source: Source,
    labels: np.ndarray,
    preprocessing: Preprocessing,
    settings: Any,
    mesh: Mesh,
    workers: int,
    max_pixels: int,
    start: int,
) -> Iterator[Iterator[dict[str, Array]]]:
    """Yields {"images": uint8 [B, S, S, C], "labels": int32 [B]} from batch `start` on, for ever.

    The arrays are split over the mesh; each process loads the pictures of its own devices only.

    Args:
      preprocessing: gives the side of the crops and the number of channels.
      settings: has batch_size and seed.
      max_pixels: larger pictures are replaced by others.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = shards if settings.batch_size % shards == 0 else 1
    loader = LabelledLoader(
        source,
        labels,
        batch_size=settings.batch_size,
        size=preprocessing.image_px,
        decoding=DecodeSpec(max_pixels, len(preprocessing.mean)),
        start_batch=start,
        parts=parts,
        share=local_groups(mesh, parts),
        seed=settings.seed,
        workers=workers,
    )
    names = "images", "labels"
    with contextlib.closing(loader):
        yield (put_batch({name: batch[name] for name in names}, mesh) for batch in loader)
