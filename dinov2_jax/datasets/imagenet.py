"""ImageNet-1k in its usual layouts.

The order of classes is always that of the 1000 sorted WordNet ids ("n01440764"), as in the folders
of train/, synset_words.txt, LOC_synset_mapping.txt, TFDS and every released classifier. The devkit
counts differently (its ILSVRC2012_ID 1 is n02119789); meta.mat converts its validation labels.
"""

import csv
import os
from collections.abc import Sequence, Sized

from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, SourceError, check_name
from dinov2_jax.datasets import files
from dinov2_jax.datasets.stored import read_mat

_SYNSETS = ("synset_words.txt", "synsets.txt", "LOC_synset_mapping.txt")
_VAL_LABELS = (
    "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "val.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)  # fmt: skip
_KAGGLE = "/ILSVRC/Data/CLS-LOC"  # Kaggle's lists lie above these folders
_DEVKIT = "ILSVRC2012_devkit_t12/data"


def imagenet(root: str, split: str, *, val_labels: str = "") -> files.Files:
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
    folder = files.require(root, split, *(["validation"] if split == "val" else []), title=title)
    wnids = known_wnids(root)
    flat = split == "val" and files.pictures_in(folder)
    if not flat:
        wnids = wnids or files.folders_in(folder, title)
        return files.class_files(folder, wnids, wnids, title)
    path = val_labels or _find(root, _VAL_LABELS)
    if not path:
        raise SourceError(
            f"{title}: the pictures in {folder} need labels; put one of {', '.join(_VAL_LABELS)} "
            f"into {root}, or sort the pictures into class folders"
        )
    labels, wnids = _read_val_labels(path, flat, wnids)
    return files.Files(folder, flat, labels, wnids, title=title)


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
        return files.folders_in(train, "ImageNet train") if os.path.isdir(train) else []
    wnids = [line.split()[0] for line in files.read_lines(path)]
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
    lines = files.read_lines(path)
    if lines[0].isdigit():  # the devkit
        by_id = _devkit_wnids(os.path.join(os.path.dirname(path), "meta.mat"))
        numbers = [files.as_number(line, path) for line in lines]
        if max(numbers) > len(by_id) or min(numbers) < 1:
            raise SourceError(f"{path} holds an id beyond 1 ... {len(by_id)}; unpack it again")
        if wnids and wnids != sorted(by_id):
            raise SourceError(
                f"{path} is of {len(by_id)} classes, but {len(wnids)} others are listed or lie in "
                "train/; take all of one release"
            )
        wnids = sorted(by_id)
        lines = [by_id[number - 1] for number in numbers]
    if not wnids:
        raise SourceError(
            f"{path} gives labels, but the order of classes is unknown; put {_SYNSETS[0]} beside it"
        )
    if path.endswith(".csv") or len(lines[0].split()) > 1:
        return _labels_by_name(path, pictures, wnids), wnids
    check_length(path, lines, pictures)
    return files.class_numbers(lines, wnids, path), wnids


def _labels_by_name(path: str, pictures: Sequence[str], wnids: list[str]) -> list[int]:
    """Class numbers of the pictures, from a list with a name and a class a line."""
    if path.endswith(".csv"):
        with open(path, encoding="utf-8", newline="") as file:
            rows = [(row[0], row[1].split()[0]) for row in list(csv.reader(file))[1:] if row]
        numbers = files.class_numbers([wnid for _, wnid in rows], wnids, path)
    else:
        rows = files.read_rows(path, 2)
        numbers = [files.as_number(label, path) for _, label in rows]
    stems = [os.path.splitext(name)[0] for name, _ in rows]
    by_name = dict(zip(stems, numbers, strict=True))
    lost = [name for name in pictures if os.path.splitext(name)[0] not in by_name]
    if lost:
        raise SourceError(
            f"{path} has no label for {len(lost):,} of {len(pictures):,} pictures, such as "
            f"{lost[0]}; take the list of this release"
        )
    check_length(path, by_name, pictures)
    return [by_name[os.path.splitext(name)[0]] for name in pictures]


def check_length(path: str, labels: Sized, pictures: Sized) -> None:
    """Raises SourceError where a label file does not belong to the pictures."""
    if len(labels) != len(pictures):
        raise SourceError(
            f"{path} has {len(labels):,} labels, but there are {len(pictures):,} pictures; both "
            "must be of the same release, and whole"
        )


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
