"""Folders of splits, such as train/ and val/: which names mean which split."""

import os
import re

from dinov2_jax.data.sources.source import SPLITS, SourceError, check_name

# What data sets call a split, in lower case and without "set", "images", a year and the like.
_NAMES = {
    "train": ("train", "training", "trn", "trainval"),
    "validation": ("validation", "val", "valid", "validate", "dev", "development", "eval"),
    "test": ("test", "testing", "tst", "holdout", "heldout", "evaluation"),
}
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
_DECORATION = re.compile(r"^(images?|imgs?|split)|(sets?|split|data|images?|imgs?)?\d*$")


def split_of(folder: str) -> str | None:
    """The split that a folder's name stands for: "train", "validation", "test" or None.

    Capitals, separators, years and words such as "set" do not count: Train, val2017, test_images.
    """
    plain = "".join(filter(str.isalnum, folder.casefold()))
    return _SPLIT_OF.get(plain) or _SPLIT_OF.get(_DECORATION.sub("", plain))


def check_split(split: str) -> str:
    """The name of a split in the words of this package: "val" and "dev" are "validation".

    Raises:
      SourceError: neither a split nor "all".
    """
    known = split_of(split) or split
    check_name("split", known, (*SPLITS, "validation"))
    return known


def split_folders(path: str) -> dict[str, list[str]]:
    """{split: folders} of a folder that holds one for training and one for another; else {}."""
    folders: dict[str, list[str]] = {}
    for name in sorted(os.listdir(path)):
        split = split_of(name) if os.path.isdir(os.path.join(path, name)) else None
        if split is not None:
            folders.setdefault(split, []).append(name)
    return folders if "train" in folders and len(folders) > 1 else {}


def chosen_folder(path: str, folders: dict[str, list[str]], split: str) -> str:
    """The folder of a split; validation and test stand in for each other.

    Raises:
      SourceError: two folders mean this split.
    """
    other = {"validation": "test", "test": "validation"}
    names = folders.get(split) or folders[other[split]]
    if len(names) > 1:
        raise SourceError(
            f"data.path={path} holds {names[0]}/ and {names[1]}/, and both look like the split "
            f"{split!r}; name one of the two as the path"
        )
    return names[0]


def note_on_splits(path: str, folders: dict[str, list[str]], split: str) -> str:
    """One sentence that says which folder was taken as what."""
    named = ", ".join(f"{n}/ is {split}" for split, names in sorted(folders.items()) for n in names)
    if split == "all":
        return f"{path} has splits ({named}), and all its pictures are read, held-out ones too"
    rest = set(os.listdir(path)) - {chosen_folder(path, folders, split)}
    left = sorted(name for name in rest if os.path.isdir(os.path.join(path, name)))
    return f"{path} has splits ({named}); {split} is read, and {', '.join(left)} left out"
