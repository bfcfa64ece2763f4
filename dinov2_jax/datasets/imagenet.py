"""ImageNet-1k in its usual layouts.

The order of classes is always that of the 1000 sorted WordNet ids ("n01440764"), as in the folders
of train/, synset_words.txt, LOC_synset_mapping.txt, TFDS and every released classifier. The devkit
counts differently (its ILSVRC2012_ID 1 is n02119789); meta.mat converts its validation labels.
"""

import csv
import os
from collections.abc import Sequence

from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, SourceError, check_name
from dinov2_jax.datasets.files import (
    Files,
    as_number,
    class_files,
    class_numbers,
    folders_in,
    pictures_in,
    read_lines,
    read_rows,
    require,
)
from dinov2_jax.datasets.stored import read_mat

_SYNSETS = ("synset_words.txt", "synsets.txt", "LOC_synset_mapping.txt")
_VAL_LABELS = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
_KAGGLE = "/ILSVRC/Data/CLS-LOC"  # Kaggle's lists lie above these folders
_DEVKIT = "ILSVRC2012_devkit_t12/data"


def imagenet(root: str, split: str, *, val_labels: str = "") -> Files:
    """ILSVRC 2012 as folders.

    Training pictures lie in train/<WordNet id>/. Validation pictures lie in val/<WordNet id>/, or
    directly in val/ with a label file: LOC_val_solution.csv (Kaggle); a text file with a WordNet id
    a line (imagenet_2012_validation_synset_labels.txt); one with "name number" a line, where 0 is
    the first sorted id (Caffe's val.txt); or the devkit's ILSVRC2012_validation_ground_truth.txt
    with its meta.mat in the same folder, which needs scipy.

    Args:
      root: the folder of train/ and val/; in Kaggle's archive ILSVRC/Data/CLS-LOC. Lists may lie in
        it, in the folder above, in ILSVRC2012_devkit_t12/data of both, and next to ILSVRC.
      split: "train" or "val".
      val_labels: the file of validation labels, if it lies elsewhere.

    Raises:
      SourceError: a class, picture or list is missing, or a list has another length.
      ImportError: the devkit's labels without scipy.
    """
    check_name("split", split, ("train", "val"))
    title, root = f"ImageNet {split}", os.path.expanduser(root)
    folder = require(root, split, *(["validation"] if split == "val" else []), title=title)
    wnids = known_wnids(root)
    flat = split == "val" and pictures_in(folder)
    if not flat:
        wnids = wnids or folders_in(folder, title)
        return class_files(folder, wnids, wnids, title)
    path = val_labels or _find(root, _VAL_LABELS)
    if not path:
        raise SourceError(
            f"{title}: the pictures in {folder} need labels; put one of {', '.join(_VAL_LABELS)} "
            f"into {root}, or sort the pictures into class folders"
        )
    labels, wnids = _read_val_labels(path, flat, wnids)
    return Files(folder, flat, labels, wnids, title=title)


def imagenet_tfds(path: str, split: str) -> Source:
    """ImageNet prepared by TFDS as ArrayRecord, read without TensorFlow.

    `path` is "imagenet2012", "imagenet2012@data_dir" or the folder of the version; `split` is
    "train" or "val". Raises SourceError if it is not prepared, or its classes have another order.
    """
    check_name("split", split, ("train", "val"))
    source = open_source("tfds", path, {"train": "train", "val": "validation"}[split])
    names = list(source.class_names or ())
    if not names or names != sorted(names):
        raise SourceError(
            f"data.path={path} has no classes in the order of sorted WordNet ids, but "
            f"{names[:2]} ...; name a prepared imagenet2012"
        )
    return source


def known_wnids(root: str) -> list[str]:
    """The sorted WordNet ids, from a list file in or above `root`, else from the folders of train/.

    An empty list where there is neither. Raises SourceError if the list has another order.
    """
    path, train = _find(root, _SYNSETS), os.path.join(root, "train")
    if not path:
        return folders_in(train, "ImageNet train") if os.path.isdir(train) else []
    wnids = [line.split()[0] for line in read_lines(path)]
    if wnids != sorted(set(wnids)):
        raise SourceError(
            f"{path} does not list each WordNet id once in sorted order, which is the order of "
            "classes; remove it to take the folders of train/"
        )
    return wnids


def _find(root: str, names: Sequence[str]) -> str:
    """The first of the files in `root`, the folder above, or a devkit in them; else ""."""
    whole = os.path.abspath(root)
    bases = [whole, os.path.dirname(whole), whole.removesuffix(_KAGGLE)]
    places = [place for base in bases for place in (base, os.path.join(base, _DEVKIT))]
    paths = (os.path.join(place, name) for name in names for place in places)
    return next(filter(os.path.isfile, paths), "")


def _read_val_labels(
    path: str, pictures: Sequence[str], wnids: list[str]
) -> tuple[list[int], list[str]]:
    """Class numbers of the pictures, in the order of their names, and the WordNet ids."""
    lines = read_lines(path)
    if lines[0].isdigit():  # the devkit
        by_id = _devkit_wnids(os.path.join(os.path.dirname(path), "meta.mat"))
        numbers = [as_number(line, path) for line in lines]
        if max(numbers) > len(by_id) or min(numbers) < 1:
            raise SourceError(f"{path} holds an id beyond 1 ... {len(by_id)}; unpack it again")
        order = sorted(by_id)
        if wnids and wnids != order:
            raise SourceError(
                f"{path} is of {len(order)} classes, but {len(wnids)} others are listed or lie in "
                "train/; take all of one release"
            )
        labels = class_numbers([by_id[number - 1] for number in numbers], order, path)
        return _of_length(labels, pictures, path), order
    if not wnids:
        raise SourceError(
            f"{path} gives labels, but the order of classes is unknown; put {_SYNSETS[0]} beside it"
        )
    if path.endswith(".csv"):
        with open(path, encoding="utf-8", newline="") as file:
            rows = [(row[0], row[1].split()[0]) for row in list(csv.reader(file))[1:] if row]
        numbers = class_numbers([wnid for _, wnid in rows], wnids, path)
        by_name = dict(zip((name for name, _ in rows), numbers, strict=True))
    elif len(lines[0].split()) == 1:
        return _of_length(class_numbers(lines, wnids, path), pictures, path), wnids
    else:
        rows = read_rows(path, 2)
        by_name = {os.path.splitext(name)[0]: as_number(label, path) for name, label in rows}
    stems = [os.path.splitext(name)[0] for name in pictures]
    lost = [name for name, stem in zip(pictures, stems, strict=True) if stem not in by_name]
    if lost:
        raise SourceError(
            f"{path} has no label for {len(lost):,} of {len(pictures):,} pictures, such as "
            f"{lost[0]}; take the list of this release"
        )
    _of_length(list(by_name), pictures, path)
    return [by_name[stem] for stem in stems], wnids


def _of_length(labels: list, pictures: Sequence[str], path: str) -> list:
    if len(labels) != len(pictures):
        raise SourceError(different_lengths(path, len(labels), len(pictures)))
    return labels


def different_lengths(path: str, labels: int, pictures: int) -> str:
    """The sentence for a label file that does not belong to the pictures."""
    counts = f"{labels:,} labels, but there are {pictures:,} pictures"
    return f"{path} has {counts}; both must be of the same release, and whole"


def _devkit_wnids(path: str) -> list[str]:
    """WordNet ids by ILSVRC2012_ID, from 1 on, without the ids of groups of classes."""
    if not os.path.isfile(path):
        raise SourceError(
            f"the devkit's ids need {path}; put meta.mat of ILSVRC2012_devkit_t12 beside the labels"
        )
    synsets = read_mat(path)["synsets"]
    leaves = [s for s in synsets if int(s["num_children"]) == 0]
    by_id = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
    if sorted(by_id) != list(range(1, len(by_id) + 1)):
        raise SourceError(f"{path} does not number its classes 1 ... {len(by_id)}; unpack it again")
    return [by_id[number] for number in sorted(by_id)]
