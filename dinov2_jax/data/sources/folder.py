"""Pictures below a folder, or those that a text file lists: no names, labels or metadata needed."""

import hashlib
import itertools
import os
from collections.abc import Iterator

import numpy as np

from dinov2_jax.data.sources.files import (
    STRAY_FOLDERS,
    NamedFiles,
    is_called_picture,
    may_be_picture,
)
from dinov2_jax.data.sources.source import NoSplitError, SourceError, not_found
from dinov2_jax.data.sources.splits import (
    check_split,
    chosen_folder,
    note_on_splits,
    split_folders,
)

_MAX_NOTES = 3


class Folder(NamedFiles):
    """All pictures under a folder, or those that a text file lists, in the order of their names.

    A folder that holds train/ and val/ or test/, in any common spelling, has these splits. Any
    other folder is divided only if it has labels: "train" is four fifths and "test" one fifth, by a
    hash of the relative name, so that a new file never moves another. Without labels, "train" and
    "all" are the whole folder, and it has no other split.
    """

    def __init__(self, path: str, split: str = "all", labels: str = "none") -> None:
        if not os.path.exists(path):
            raise not_found(path)
        split = check_split(split)
        listed = not os.path.isdir(path)
        folders = {} if listed else split_folders(path)
        notes = [note_on_splits(path, folders, split)] if folders else []
        if folders and split != "all":
            path = os.path.join(path, chosen_folder(path, folders, split))
            split, folders = "all", {}
        root = os.path.dirname(os.path.abspath(path)) if listed else os.path.abspath(path)
        names = _read_list(path) if listed else sorted(_walk(root, notes))
        if not names:
            raise SourceError(
                f"data.path={path} holds no picture; name a folder with image files, or a text "
                "file that lists pictures or .npy files"
            )
        inner = set(map(os.fsencode, itertools.chain(*folders.values())))
        names = names if labels == "none" else _without_strays(names, inner, path, notes)
        classes = _class_folders(names, labels, path, inner)
        if classes is not None:
            names, self.class_names, self.labels = _take_split(names, classes, split, path)
        elif split not in ("train", "all"):
            raise NoSplitError(
                f"data.path={path} has no folder for the split {split!r}, such as train/ and val/, "
                "and no class folders by which it could be divided; give the pictures of that "
                "split a path of their own"
            )
        super().__init__(root, names)
        self.notes = tuple(_at_most(_MAX_NOTES, notes))


def _walk(root: str, notes: list[str]) -> Iterator[bytes]:
    """Relative names of all files that are not hidden, and of links to nothing.

    A directory is entered once; `notes` gets a sentence on each other way to it.
    """
    top = os.fsencode(root)
    pending, entered = [b""], dict[tuple[int, int], bytes]()
    while pending:
        prefix = pending.pop()
        info = os.stat(os.path.join(top, prefix))
        first = entered.setdefault((info.st_dev, info.st_ino), prefix)
        if first != prefix:  # two links to one folder, or a loop
            ways = [os.fsdecode(name) or "." for name in (prefix, first)]
            notes.append(
                f"{root}: {ways[0]} leads to the same folder as {ways[1]}; it is read once"
            )
            continue
        try:
            entries = sorted(os.scandir(os.path.join(top, prefix)), key=lambda entry: entry.name)
        except PermissionError:
            yield prefix  # reading it fails, so it is counted and listed like a bad picture
            continue
        for entry in entries:
            name = os.path.join(prefix, entry.name)
            if entry.name.startswith(b"."):
                continue
            if _is_folder(entry):
                if os.fsdecode(entry.name) not in STRAY_FOLDERS:
                    pending.append(name)
            elif may_be_picture(entry.name) and _is_file_or_dead_link(entry):
                yield name


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look
        return False


def _is_file_or_dead_link(entry: os.DirEntry[bytes]) -> bool:
    """Files of DataLad, DVC or a disk that is not there are links to nothing: lost, not absent."""
    return entry.is_file() if os.path.exists(entry.path) else entry.is_symlink()


def _at_most(limit: int, notes: list[str]) -> list[str]:
    more = len(notes) - limit
    return notes[:limit] + ([f"... and {more} more of the same kind"] if more > 0 else [])


def _read_list(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        start = file.read(4096)
        text = start if b"\0" in start else start + file.read()
        if b"\0" in text:  # so does UTF-16, which some editors and shells write
            raise SourceError(
                f"data.path={path} is neither a folder nor a list of paths in UTF-8, one a line; "
                "unpack an archive first, and name the folder"
            )
    lines = (line.strip(b"\r\n") for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    return [line for line in lines if line.strip()]


def _without_strays(
    names: list[bytes], splits: set[bytes], path: str, notes: list[str]
) -> list[bytes]:
    """The names without files beside class folders that are not called as pictures are.

    A picture there means that folders are no classes; `notes` gets a sentence on either.
    """
    folders = _first_folders(names, splits)
    beside = [name for name, folder in zip(names, folders, strict=True) if not folder]
    if not beside or len(set(folders)) < 3:
        return names
    pictures = [name for name in beside if is_called_picture(os.fsdecode(name))]
    first = os.fsdecode((pictures or beside)[0])
    more = f" and {len(pictures or beside) - 1} more" if len(pictures or beside) > 1 else ""
    if pictures:
        lies = "lie" if more else "lies"
        notes.append(f"{first}{more} {lies} in {path} beside folders, so these are no classes")
        return names
    notes.append(f"{path} also holds {first}{more}, left out")
    strays = set(beside)
    return [name for name in names if name not in strays]


def _first_folders(names: list[bytes], splits: set[bytes]) -> list[bytes]:
    """The folder of every name below one of `splits` or at the top; b"" where it lies in none."""
    parts = (name.split(b"/") for name in names)
    below = (part[1:] if part[0] in splits else part for part in parts)
    return [part[0] if len(part) > 1 else b"" for part in below]


def _class_folders(
    names: list[bytes], labels: str, path: str, splits: set[bytes]
) -> list[bytes] | None:
    """The class folder of every name, which lies below one of `splits` or at the top."""
    if labels == "none":
        return None
    folders = _first_folders(names, splits)
    if labels == "auto":
        return folders if b"" not in folders and len(set(folders)) > 1 else None
    if os.path.isfile(path) and any(name.startswith(b"/") for name in names):
        raise SourceError(
            f"labels='folders' takes the first folder of a path for its class, but {path} lists "
            "absolute paths; list paths relative to it, or give a file of labels"
        )
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
    held_out = {"train": (False,), "all": (False, True)}.get(split, (True,))
    chosen = [row for row, name in enumerate(names) if is_test(name) in held_out]
    if not chosen:
        raise SourceError(f"the split {split!r} of {path} is empty; it needs more pictures")
    class_names = tuple(os.fsdecode(name) for name in classes)
    return [names[row] for row in chosen], class_names, numbers[chosen].astype(np.int64)


def is_test(name: bytes) -> bool:
    """Whether a picture is held out: a fixed fifth of the names, by hash."""
    return hashlib.blake2b(name, digest_size=8).digest()[0] % 5 == 0
