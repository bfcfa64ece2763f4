"""Sets with depths: metres for every pixel."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.dense import DenseData, DenseSplit
from dinov2_jax.datasets.depth_files import MILLIMETRES, reader
from dinov2_jax.datasets.files import Files, absent, find, home, read_lines
from dinov2_jax.datasets.pairs import open_pairs

DEPTH_SETS = ("nyu", "kitti", "sunrgbd", "folder")
SUN_MOST_M = 8.0  # SUN RGB-D's own tools read depths beyond as 8 m
_NO_COLOURS = np.zeros((0, 3), np.uint8)
_NONE = "None"  # in a list of KITTI: a frame without depths


@dataclass(frozen=True)
class _Listed:
    """A set in which lists name the picture and the depth of each line.

    Attributes:
      title: for messages.
      lists: by split, the names that its list has in copies of the set.
      units: of a depth file, per metre.
    """

    title: str
    lists: dict[str, tuple[str, ...]]
    units: float


_SETS = {
    "nyu": _Listed(
        "NYU Depth v2",
        {
            "train": ("nyu_train.txt", "nyudepthv2_train_files_with_gt.txt"),
            "test": ("nyu_test.txt", "nyudepthv2_test_files_with_gt.txt"),
        },
        MILLIMETRES,
    ),
    "kitti": _Listed(
        "KITTI, Eigen's split",
        {
            "train": ("kitti_eigen_train.txt", "eigen_train_files_with_gt.txt"),
            "test": ("kitti_eigen_test.txt", "eigen_test_files_with_gt.txt"),
        },
        256.0,
    ),
    "sunrgbd": _Listed("SUN RGB-D", {"test": ("SUNRGBD_val_splits.txt",)}, MILLIMETRES),
}


def open_depth(name: str, path: str, units_per_metre: float = 0.0, train: bool = True) -> DenseData:
    """Opens a set with depths.

    Args:
      name: one of DEPTH_SETS.
      path: of "nyu", "kitti" and "sunrgbd" a folder that holds the lists of the public depth
        toolboxes, and the files that they name, in it or in folders below. "folder": see
        `pairs.open_pairs`, with depth files in place of masks.
      units_per_metre: of the depth files; 0: those of the set, millimetres for a folder.
      train: whether the training pictures are needed; without, their files may be absent.
        SUN RGB-D has none, it judges heads of NYU.

    Raises:
      SourceError: lists or files are missing, in one sentence.
    """
    root = os.path.expanduser(path)
    if name == "folder":
        title = os.path.basename(os.path.abspath(root))
        splits = open_pairs(root, "depth", reader(units_per_metre or MILLIMETRES), title)
        return DenseData(title, splits, (), _NO_COLOURS)
    if name not in _SETS:
        raise SourceError(
            f"config.data.set={name!r} has no depths; choose one of {', '.join(DEPTH_SETS)}"
        )
    listed = _SETS[name]
    sun = {"turned_bits": True, "most_m": SUN_MOST_M} if name == "sunrgbd" else {}
    read = reader(units_per_metre or listed.units, **sun)
    wanted = [split for split in listed.lists if train or split != "train"]
    splits = {split: _open_listed(root, listed, split, read) for split in wanted}
    return DenseData(name, splits, (), _NO_COLOURS)


def _open_listed(
    root: str, listed: _Listed, split: str, read: Callable[[str], np.ndarray]
) -> DenseSplit:
    title = f"{listed.title}, {split}"
    path = find(root, *listed.lists[split], title=title)
    rows = [_row(line, number, path) for number, line in enumerate(read_lines(path), start=1)]
    kept = [(picture, depth) for picture, depth in rows if depth != _NONE]
    if not kept:
        raise SourceError(f"{title}: {path} names no picture with a depth; unpack it again")
    lost = len(rows) - len(kept)
    notes = [f"{title}: {lost} of {len(rows):,} lines name no depth and are left out"] * (lost > 0)
    pictures, depths = map(list, zip(*kept, strict=True))
    source = Files(home(root, pictures[0], title=title), pictures, title=title, notes=notes)
    return DenseSplit(source, tuple(_located(root, depths, title)), read)


def _row(line: str, number: int, path: str) -> tuple[str, str]:
    """The picture and the depth of a line; what follows is the focal length, which no one needs."""
    parts = line.split()
    if len(parts) < 2:
        raise SourceError(
            f"{path}: line {number} is {line!r}, but a picture and a depth are needed; unpack it "
            "again"
        )
    # Some lists begin their paths with "/", though they lie below the set's folder.
    return parts[0].lstrip("/"), parts[1].lstrip("/")


def _located(root: str, names: list[str], title: str) -> list[str]:
    """Whole paths of depth files.

    KITTI's own archive divides its drives into train/ and val/ otherwise than Eigen's lists do, so
    that the files of one list lie in both.

    Raises SourceError where one is missing.
    """
    base = home(root, names[0], title=title)
    above, last = os.path.split(os.path.normpath(base))
    bases = [base] + [os.path.join(above, x) for x in ("train", "val") if last in ("train", "val")]
    found: dict[int, str] = {}
    for folder in dict.fromkeys(bases):
        gone = set(absent(folder, names))
        here = (i for i in range(len(names)) if i not in gone)
        found = {i: os.path.join(folder, names[i]) for i in here} | found
    missing = [name for i, name in enumerate(names) if i not in found]
    if missing:
        raise SourceError(
            f"{title}: {len(missing):,} of {len(names):,} depths are missing, such as "
            f"{os.path.join(base, missing[0])}; unpack the archives again"
        )
    return [found[i] for i in range(len(names))]
