"""Stanford Cars in its two official forms."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets import files
from dinov2_jax.datasets.stored import read_mat

_TITLE = "Cars"
_META = ("devkit/cars_meta.mat", "cars_meta.mat")
_TEST = "cars_test_annos_withlabels.mat"


def stanford_cars(root: str) -> tuple[files.Files, files.Files]:
    """Train and test, from cars_train/, cars_test/ and devkit/, or car_ims/ and cars_annos.mat.

    Raises SourceError where a list, class or picture is missing, ImportError without scipy.
    """
    whole = ("cars_annos.mat", "car_ims/cars_annos.mat")
    if not files.seek(root, *_META, title=_TITLE) and files.seek(root, "car_ims", title=_TITLE):
        return _of_one_archive(root, files.find(root, *whole, title=_TITLE))
    meta = read_mat(files.find(root, *_META, title=_TITLE), "class_names")
    classes = [str(name) for name in np.atleast_1d(meta["class_names"])]
    train = _split(root, "train", classes, "devkit/cars_train_annos.mat", "cars_train_annos.mat")
    return train, _split(root, "test", classes, _TEST, f"devkit/{_TEST}")


def _split(root: str, name: str, classes: list[str], *lists: str) -> files.Files:
    path = files.find(root, *lists, title=_TITLE)
    rows = _rows(path, read_mat(path, "annotations"), "class", "fname")
    labels = [int(row["class"]) - 1 for row in rows]
    names = [f"cars_{name}/{row['fname']}" for row in rows]
    pictures = os.path.dirname(files.find(root, f"cars_{name}", title=_TITLE))
    return files.Files(pictures, names, labels, classes, title=f"{_TITLE} {name}")


def _rows(path: str, stored: Mapping[str, Any], *fields: str) -> np.ndarray:
    rows = np.atleast_1d(stored["annotations"])
    lost = [name for name in fields if name not in (rows.dtype.names or ())]
    if lost:  # the devkit's list of the test set has no classes
        raise SourceError(
            f"{path} has no {lost[0]} of its pictures; take the list with labels, {_TEST}"
        )
    return rows


def _of_one_archive(root: str, path: str) -> tuple[files.Files, files.Files]:
    """The list of all pictures marks those of the test set."""
    stored, marked = read_mat(path, "annotations", "class_names"), {0: "train", 1: "test"}
    rows = _rows(path, stored, "class", "test", "relative_im_path")
    classes = [str(name) for name in np.atleast_1d(stored["class_names"])]
    pictures = os.path.dirname(files.find(root, "car_ims", title=_TITLE))

    def split(mark: int) -> files.Files:
        chosen = [row for row in rows if int(row["test"]) == mark]
        labels = [int(row["class"]) - 1 for row in chosen]
        names = [str(row["relative_im_path"]) for row in chosen]
        return files.Files(pictures, names, labels, classes, title=f"{_TITLE} {marked[mark]}")

    return split(0), split(1)
