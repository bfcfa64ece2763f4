"""The variants of ImageNet that measure robustness: V2, ReaL, A, R, Sketch and C.

All use the sorted WordNet ids of `dinov2_jax.datasets.imagenet.known_wnids`.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.datasets import files
from dinov2_jax.datasets.imagenet import WNID, check_length

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)


class Subset(NamedTuple):
    """A set with some of the 1000 classes: label i is number classes[i] (int64) of them.

    So a classifier of 1000 classes scores this set with `scores[:, classes]`.
    """

    pictures: files.Files
    classes: np.ndarray


def imagenet_v2(root: str, wnids: Sequence[str]) -> files.Files:
    """ImageNet-V2: folders 0 ... 999, whose names are class numbers.

    `root` is a folder such as imagenetv2-matched-frequency-format-val, or the one above.
    """
    title = "ImageNet-V2"
    root = files.home(root, "0", title=title)
    there = sum(name.isdecimal() for name in files.visible_folders(root))
    if there != len(wnids):
        raise SourceError(
            f"{title}: {root} holds {there} class folders, but the classifier has "
            f"{len(wnids)} classes, and its folders are numbers of these; train on all 1000"
        )
    return files.class_files(root, [str(number) for number in range(there)], wnids, title)


def imagenet_sketch(root: str, wnids: Sequence[str]) -> files.Files:
    """ImageNet-Sketch: <WordNet id>/*, all 1000 classes; `root` may be the folder above sketch/."""
    title = "ImageNet-Sketch"
    return files.class_files(files.home(root, wnids[0], title=title), wnids, wnids, title)


def imagenet_subset(root: str, wnids: Sequence[str], classes: int = 200) -> Subset:
    """ImageNet-A or ImageNet-R: <WordNet id>/*; exactly `classes` of the 1000 classes.

    `root` may be the folder above imagenet-a/ or imagenet-r/.
    """
    root = files.home(root, *wnids, title="ImageNet-A or R")
    title = f"ImageNet subset {os.path.basename(root)}"
    folders = [f for f in files.visible_folders(root) if f in set(wnids) or WNID.fullmatch(f)]
    numbers = files.class_numbers(folders, wnids, root)
    if len(folders) != classes:
        counts = f"{len(folders)} class folders, but the set has {classes}"
        raise SourceError(f"{title}: {root} holds {counts}; the copy is incomplete")
    return Subset(files.class_files(root, folders, folders, title), np.array(numbers, np.int64))


def imagenet_c(root: str, corruption: str, severity: int, wnids: Sequence[str]) -> files.Files:
    """ImageNet-C: <corruption>/<severity 1 ... 5>/<WordNet id>/*.

    Its tar files may be unpacked into one folder or each into its own (noise/, blur/, weather/,
    digital/, extra/). CORRUPTIONS are the 15 of mCE.
    """
    title = f"ImageNet-C {corruption} {severity}"
    folder = files.find(root, f"{corruption}/{severity}", title=title)
    return files.class_files(folder, wnids, wnids, title)


def real_labels(path: str, pictures: Source) -> np.ndarray:
    """The reassessed labels (real.json, Beyer et al. 2020) of the validation pictures.

    Row i of the file belongs to ILSVRC2012_val_<i + 1 in 8 digits>.JPEG, in whatever order the
    pictures are read. The result is int64 [len(pictures), m], each row padded with -1; a row
    without labels is all -1. Raises SourceError where the file is no list of lists of class numbers
    or has another length, or the pictures have other names, as those of TFDS.
    """
    lists = files.read_json(os.path.expanduser(path))
    if not isinstance(lists, list) or not all(isinstance(row, list) for row in lists):
        raise SourceError(f"{path} is no list of lists of labels; take real.json of its authors")
    names = [pictures.name(row) for row in range(len(pictures))]
    check_length(path, lists, names)
    numbers = [re.search(r"ILSVRC2012_val_(\d{8})\.", name) for name in names]
    order = [int(match[1]) if match else 0 for match in numbers]
    if sorted(order) != list(range(1, len(lists) + 1)):
        odd = names[order.index(0) if 0 in order else 0]
        raise SourceError(
            f"{path} belongs to pictures ILSVRC2012_val_00000001.JPEG, ..., each of them once, but "
            f"one is called {odd}; take the validation set under its official names"
        )
    labels = np.full((len(lists), max(1, *map(len, lists))), -1, np.int64)
    for row, number in enumerate(order):
        labels[row, : len(lists[number - 1])] = lists[number - 1]
    return labels
