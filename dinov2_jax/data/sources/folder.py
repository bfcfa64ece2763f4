"""Pictures below a folder, or those that a text file lists: no names, labels or metadata needed."""

import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from dinov2_jax.data.sources.files import NamedFiles, may_be_picture
from dinov2_jax.data.sources.source import SPLITS, SourceError, check_name, not_found

# The names of the folders of a split, as torchvision and others write them.
_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "val", "valid", "test"),
    "test": ("test", "validation", "val", "valid"),
}


class Folder(NamedFiles):
    """All pictures under a folder, or those that a text file lists, in the order of their names.

    A folder that holds train/ and val/ (or validation/, valid/, test/) has these splits. Any other
    folder is divided only if it has labels: "train" is four fifths and "test" one fifth, by a hash
    of the relative name, so that a new file never moves another. Without labels every split is the
    whole folder.
    """

    def __init__(self, path: str, split: str = "all", labels: str = "none") -> None:
        if not os.path.exists(path):
            raise not_found(path)
        listed = not os.path.isdir(path)
        of_split = None if listed else _split_folder(path, split)
        if of_split is not None:
            path, split = of_split, "all"
        root = os.path.dirname(os.path.abspath(path)) if listed else os.path.abspath(path)
        names = _read_list(path) if listed else sorted(_walk(root))
        if not names:
            raise SourceError(f"data.path={path} holds no picture; name a folder with image files")
        folders = _class_folders(names, labels, path)
        if folders is not None:
            split = "test" if split == "validation" else split  # the name that other data sets use
            check_name("split", split, SPLITS)
            names, self.class_names, self.labels = _take_split(names, folders, split, path)
        super().__init__(root, names)


def _walk(root: str) -> Iterator[bytes]:
    """Relative names of all regular files that are not hidden; a directory is entered once."""
    top = os.fsencode(root)
    pending, entered = [b""], set()
    while pending:
        prefix = pending.pop()
        info = os.stat(os.path.join(top, prefix))
        if (info.st_dev, info.st_ino) in entered:  # a loop of symbolic links
            continue
        entered.add((info.st_dev, info.st_ino))
        try:
            entries = sorted(os.scandir(os.path.join(top, prefix)), key=lambda entry: entry.name)
        except PermissionError:
            yield prefix  # reading it fails, so it is counted and listed like a bad picture
            continue
        for entry in entries:
            name = os.path.join(prefix, entry.name)
            if entry.name.startswith(b"."):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself, or to where we may not look
                continue
            if is_folder:
                pending.append(name)
            elif is_file and may_be_picture(entry.name):
                yield name


def _split_folder(path: str, split: str) -> str | None:
    """The folder of a split, if `path` holds a folder for training and one for another split."""

    def first(names: Sequence[str]) -> str | None:
        folders = (os.path.join(path, name) for name in names)
        return next(filter(os.path.isdir, folders), None)

    divided = all(first(_SPLIT_FOLDERS[name]) for name in ("train", "test"))
    return first(_SPLIT_FOLDERS[split]) if divided and split in _SPLIT_FOLDERS else None


def _read_list(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        start = file.read(4096)
        if b"\0" in start:  # so does UTF-16, which some editors and shells write
            raise SourceError(
                f"data.path={path} is neither a folder nor a list of paths in UTF-8, one a line; "
                "unpack an archive first, and name the folder"
            )
        text = (start + file.read()).removeprefix(b"\xef\xbb\xbf")
    lines = (line.strip(b"\r\n") for line in text.split(b"\n"))
    return [line for line in lines if line.strip()]


def _class_folders(names: list[bytes], labels: str, path: str) -> list[bytes] | None:
    """The class folder of every name, or None without labels."""
    if labels == "none":
        return None
    folders = [name.partition(b"/")[0] if b"/" in name else b"" for name in names]
    if labels == "auto":
        return folders if b"" not in folders and len(set(folders)) > 1 else None
    if b"" in folders:
        lost = os.fsdecode(names[folders.index(b"")])
        raise SourceError(
            f"labels='folders' needs every picture in a class folder, but {lost} lies directly in "
            f"{path}; move it or set labels='none'"
        )
    return folders


def _take_split(
    names: list[bytes], folders: list[bytes], split: str, path: str
) -> tuple[list[bytes], tuple[str, ...], np.ndarray]:
    classes, numbers = np.unique(np.array(folders, object), return_inverse=True)
    kept = {"train": (False,), "test": (True,), "all": (False, True)}[split]
    chosen = [row for row, name in enumerate(names) if is_test(name) in kept]
    if not chosen:
        raise SourceError(f"the split {split!r} of {path} is empty; it needs more pictures")
    class_names = tuple(os.fsdecode(name) for name in classes)
    return [names[row] for row in chosen], class_names, numbers[chosen].astype(np.int64)


def is_test(name: bytes) -> bool:
    """Whether a picture is held out: a fixed fifth of the names, by hash."""
    return hashlib.blake2b(name, digest_size=8).digest()[0] % 5 == 0
