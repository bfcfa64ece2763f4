"""ImageNet-1k in its usual layouts.

The order of classes is always that of the 1000 sorted WordNet ids ("n01440764"), as in the folders
of train/, synset_words.txt, LOC_synset_mapping.txt, TFDS and every released classifier. The devkit
counts differently (its ILSVRC2012_ID 1 is n02119789); meta.mat converts its validation labels.
"""

import csv
import os
import re
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
_KAGGLE = "ILSVRC/Data/CLS-LOC"  # Kaggle's lists lie above these folders
_DEVKIT = "ILSVRC2012_devkit_t12/data"
WNID = re.compile(r"n\d{8}")
_OFFICIAL = re.compile(r"ILSVRC2012_val_\d{8}\.", re.IGNORECASE)


def imagenet(root: str, split: str, *, val_labels: str = "") -> files.Files:
    """ILSVRC 2012 as folders.

    Training pictures lie in train/<WordNet id>/. Validation pictures lie in val/<WordNet id>/, or
    directly in val/ with a label file: LOC_val_solution.csv (Kaggle); a text file with a WordNet id
    a line (imagenet_2012_validation_synset_labels.txt); one with "name number" a line, where 0 is
    the first sorted id (Caffe's val.txt); or the devkit's ILSVRC2012_validation_ground_truth.txt
    with its meta.mat in the same folder, which needs scipy. Whatever else lies there is left out
    and named in `notes`.

    Args:
      root: the folder of train/ and val/, or one of a few folders above; Kaggle's archive (CLS-LOC)
        as it unpacks. Lists may lie in it, in the folder above, in ILSVRC2012_devkit_t12/data of
        both, and next to ILSVRC.
      split: "train" or "val".
      val_labels: the file of validation labels, if it lies elsewhere.

    Raises:
      SourceError: a class, picture or list is missing, a list has another length, or val/ is
        sorted into class folders in part.
      ImportError: the devkit's labels without scipy.
    """
    check_name("split", split, ("train", "val"))
    title = f"ImageNet {split}"
    folder = _split_folder(root, split, title)
    wnids = known_wnids(root)
    if split == "train" or _class_folders(folder, wnids):
        return _sorted_files(folder, wnids, title)
    held = files.pictures_in(folder)
    path = val_labels or _find(root, _VAL_LABELS)
    if not held:  # say what is there instead
        files.class_numbers(files.folders_in(folder, title), wnids, folder)
    if not path:
        raise SourceError(
            f"{title}: the pictures in {folder} need labels; put one of {', '.join(_VAL_LABELS)} "
            f"into {os.path.dirname(folder)}, or sort the pictures into class folders"
        )
    pictures = [name for name in held if _OFFICIAL.match(name)] or held
    odd = sorted(set(held) - set(pictures)) + files.visible_folders(folder)
    labels, wnids = _read_val_labels(path, pictures, wnids)
    notes = files.strays_note(title, folder, odd)
    return files.Files(folder, pictures, labels, wnids, title=title, notes=notes)


def _split_folder(root: str, split: str, title: str) -> str:
    return files.find(root, *_places(split), title=title)


def _places(*splits: str) -> list[str]:
    """Where the folders of splits lie in the set, and in Kaggle's archive or a part of it."""
    parts = _KAGGLE.split("/")
    prefixes = ["", *("/".join(parts[start:]) + "/" for start in range(len(parts)))]
    spellings = [*splits, *(["validation"] if "val" in splits else [])]
    return [prefix + name for prefix in prefixes for name in spellings]


def _class_folders(folder: str, wnids: Sequence[str]) -> list[str]:
    """The folders that are named for classes; of unknown classes all, if none is a WordNet id."""
    names, known = files.visible_folders(folder), set(wnids)
    named = [name for name in names if name in known or WNID.fullmatch(name)]
    return named if named or known else names


def _sorted_files(folder: str, wnids: list[str], title: str) -> files.Files:
    """The pictures of class folders. Refuses those beside them that belong into one."""
    files.folders_in(folder, title)
    folders, beside = _class_folders(folder, wnids), files.pictures_in(folder)
    if wnids:
        files.class_numbers(folders, wnids, folder)
    found = files.class_files(folder, wnids or folders, wnids or folders, title)
    sorted_ones = {os.path.basename(found.name(row)) for row in range(len(found))} if beside else ()
    lost = [name for name in beside if _OFFICIAL.match(name) and name not in sorted_ones]
    if lost:
        raise SourceError(
            f"{title}: {len(lost):,} pictures lie beside the class folders of {folder}, such as "
            f"{lost[0]}; move them into their folders, or out of {folder}"
        )
    odd = beside + sorted(set(files.visible_folders(folder)) - set(folders))
    found.notes = tuple(files.strays_note(title, folder, odd))
    return found


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
    path = _find(root, _SYNSETS)
    if not path:
        train = files.seek(root, *_places("train"), title="ImageNet train")
        return _class_folders(train, ()) if train else []
    wnids = [line.split()[0] for line in files.read_lines(path)]
    if wnids != sorted(set(wnids)):
        raise SourceError(
            f"{path} does not list each WordNet id once in sorted order, which is the order of "
            "classes; remove it to take the folders of train/"
        )
    return wnids


def _find(root: str, names: Sequence[str]) -> str:
    """The first of the files beside train/ and val/, in the folder above, a devkit or `root`."""
    found = files.seek(root, *_places("val", "train"), title="ImageNet")
    whole, named = os.path.dirname(found), os.path.abspath(os.path.expanduser(root))
    bases = [whole, os.path.dirname(whole), whole.removesuffix(f"/{_KAGGLE}"), named]
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
    if "," in lines[0] or len(lines[0].split()) > 1:
        return _labels_by_name(path, pictures, wnids), wnids
    check_length(path, lines, pictures)
    return files.class_numbers(lines, wnids, path), wnids


def _labels_by_name(path: str, pictures: Sequence[str], wnids: list[str]) -> list[int]:
    """Class numbers of the pictures, from a list of names with ids or numbers of classes."""
    rows, known = _named_rows(path), {wnid: number for number, wnid in enumerate(wnids)}
    known |= {str(number): number for number in range(len(wnids))}
    if rows[0][1] not in known:
        rows = rows[1:]  # a heading
    unknown = next((label for _, label in rows if label not in known), None)
    if unknown is not None:
        raise SourceError(
            f"{path} has the class {unknown!r}, which is neither one of the {len(wnids)} WordNet "
            f"ids nor a number below {len(wnids)}; take the list of this release"
        )
    by_name = {stem: known[label] for stem, label in rows}
    lost = [name for name in pictures if os.path.splitext(name)[0] not in by_name]
    if lost:
        raise SourceError(
            f"{path} has no label for {len(lost):,} of {len(pictures):,} pictures, such as "
            f"{lost[0]}; take the list of this release"
        )
    check_length(path, by_name, pictures)
    return [by_name[os.path.splitext(name)[0]] for name in pictures]


def _named_rows(path: str) -> list[tuple[str, str]]:
    """(name without folders and ending, class) of every line; the class is a number or an id."""
    rows = [
        next(csv.reader([line])) if "," in line else line.split() for line in files.read_lines(path)
    ]
    for number, row in enumerate(rows, start=1):
        if len(row) < 2 or not row[1].strip():
            raise SourceError(
                f"{path}: line {number} is {' '.join(row)!r}, but needs a name and a class; "
                "download it again"
            )
    return [(os.path.splitext(os.path.basename(row[0]))[0], row[1].split()[0]) for row in rows]


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
    synsets = read_mat(path, "synsets")["synsets"]
    leaves = [s for s in synsets if int(s["num_children"]) == 0]
    by_id = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
    if sorted(by_id) != list(range(1, len(by_id) + 1)):
        raise SourceError(f"{path} does not number its classes 1 ... {len(by_id)}; unpack it again")
    return [by_id[number] for number in sorted(by_id)]
