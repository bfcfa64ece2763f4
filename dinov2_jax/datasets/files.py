"""Files of a data set with their labels, and the lists and folders from which they come."""

import functools
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from dinov2_jax.data.sources.files import STRAY_FOLDERS, NamedFiles, is_called_picture
from dinov2_jax.data.sources.source import SourceError

_DEPTH = 3  # how many folders below the named one are searched for a set
_WIDTH = 500  # of the folders at one depth, how many are looked into
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".zip", ".rar", ".7z", ".tar.bz2", ".tar.xz")


class Files(NamedFiles):
    """Pictures or videos below one folder, in the given order.

    Args:
      names: relative to the folder `root`, with "/".
      labels: class numbers int64 [n], -1 where unknown; or None.
      class_names: of the numbers; or None.
      targets: int8 [n, classes] where a picture may have several classes; or None.
      title: the name of the set in messages.
      notes: what was left out, one sentence each.

    Raises:
      SourceError: there is no file, a file is missing, labels have another length or exceed the
        classes, or a class has no file.
    """

    def __init__(
        self,
        root: str,
        names: Sequence[str],
        labels: Sequence[int] | np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        *,
        targets: np.ndarray | None = None,
        title: str,
        notes: Sequence[str] = (),
    ) -> None:
        if not names:
            raise SourceError(f"{title}: {root} holds no file of this set; check the folder")
        super().__init__(os.path.abspath(root), [os.fsencode(name) for name in names])
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.class_names = None if class_names is None else tuple(class_names)
        self.targets, self.notes = targets, tuple(notes)
        for rows, what in ((self.labels, "labels"), (targets, "rows of targets")):
            if rows is not None and len(rows) != len(names):
                counts = f"{len(rows):,} {what} for {len(names):,} files"
                raise SourceError(f"{title}: {counts}; both must come from the same release")
        if self.labels is not None and self.class_names is not None:
            _check_classes(self.labels, self.class_names, title)
        check_present(self._root, names, title)


def _check_classes(labels: np.ndarray, class_names: tuple[str, ...], title: str) -> None:
    outside = labels[(labels >= len(class_names)) | (labels < -1)]
    if outside.size:
        raise SourceError(
            f"{title}: class number {outside.max()} is none of the {len(class_names)} classes; "
            "lists and labels must come from the same release"
        )
    empty = np.setdiff1d(np.arange(len(class_names)), labels)
    if empty.size:
        raise SourceError(
            f"{title}: {empty.size} of {len(class_names)} classes have no file, such as "
            f"{class_names[empty[0]]!r}; the copy is incomplete"
        )


def absent(root: str, names: Sequence[str]) -> list[int]:
    """Positions of the names that do not exist below `root`; each folder is listed once."""

    @functools.cache
    def inside(folder: str) -> set[str]:
        path = os.path.join(root, folder)
        return set(os.listdir(path)) if os.path.isdir(path) else set()

    parts = map(os.path.split, names)
    return [place for place, (folder, base) in enumerate(parts) if base not in inside(folder)]


def check_present(root: str, names: Sequence[str], title: str, what: str = "files") -> None:
    """Raises SourceError, naming the first lost path, unless all files or folders exist."""
    lost = absent(root, names)
    if lost:
        raise SourceError(
            f"{title}: {len(lost):,} of {len(names):,} {what} are missing, such as "
            f"{os.path.join(root, names[lost[0]])}; unpack the archives again"
        )


# --------------------------------------------------------------------------- where a set lies
def find(root: str, *choices: str, title: str) -> str:
    """The whole path of one of a set's own files or folders, wherever the set was unpacked.

    Looks for the relative paths `choices` in `root`, then in the folders below it, up to three
    deep, then in the folder above it. So `root` may be any folder on the way to the set, or one of
    the set's own. Any part of a path may be doubled, as in images/images. Raises SourceError where
    there is none, or two at one depth.
    """
    return _search(root, choices, title)[1] or _refuse(root, choices, title)


def seek(root: str, *choices: str, title: str) -> str:
    """As `find`, but "" where there is none."""
    return _search(root, choices, title)[1]


def home(root: str, *markers: str, title: str) -> str:
    """The folder that holds one of the relative paths `markers`, searched as by `find`."""
    return _search(root, markers, title)[0] or _refuse(root, markers, title)


def require(root: str, *choices: str, title: str) -> str:
    """As `find`, but in the folder `root` only."""
    root = os.path.expanduser(root)
    return _first_in([root], choices, title)[1] or _refuse(root, choices, title)


def _search(root: str, choices: Sequence[str], title: str) -> tuple[str, str]:
    """The folder that holds one of the relative paths, and the whole path; else ("", "")."""
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        return "", ""
    level = [root]
    for _ in range(_DEPTH + 1):
        found = _first_in(level, choices, title)
        if found[0]:
            return found
        inner = (os.path.join(folder, name) for folder in level for name in visible_folders(folder))
        level = list(itertools.islice(inner, _WIDTH))
    return _first_in([os.path.dirname(root)], choices, title)


def _first_in(folders: Sequence[str], choices: Sequence[str], title: str) -> tuple[str, str]:
    for choice in choices:
        found = {os.path.realpath(f): (f, path) for f in folders if (path := _below(f, choice))}
        if len(found) > 1:
            one, other, *_ = found
            raise SourceError(
                f"{title}: both {one} and {other} hold {choice}; name the one that is meant"
            )
        if found:
            return next(iter(found.values()))
    return "", ""


def _below(folder: str, relative: str) -> str:
    """The path of `relative` in a folder, through doubled parts where there are; else ""."""
    paths = [folder] if os.path.isdir(folder) else []
    for part in os.path.normpath(relative).split(os.sep):
        steps = (os.path.join(path, part, *twice) for path in paths for twice in ([part], []))
        paths = [step for step in steps if os.path.exists(step)]
    return os.path.normpath(paths[0]) if paths else ""


def _refuse(root: str, choices: Sequence[str], title: str) -> NoReturn:
    lacks = f"has no {' or '.join(choices[:4])}" if os.path.isdir(root) else "is no folder"
    inner = [os.path.join(root, name) for name in visible_folders(root)[:_WIDTH]]
    packed = [path for folder in (root, *inner) for path in _archives_in(folder)]
    first = f"unpack {packed[0]}, or " if packed else ""
    raise SourceError(
        f"{title}: {root} {lacks}; {first}name the folder into which the set was unpacked"
    )


def _archives_in(path: str) -> list[str]:
    """Whole paths of the archives in a folder, or of the one that was named for it."""
    names = sorted(os.listdir(path)) if os.path.isdir(path) else [""] * os.path.isfile(path)
    paths = (os.path.join(path, name) if name else path for name in names)
    return [path for path in paths if path.lower().endswith(_ARCHIVES)]


def visible_folders(path: str) -> list[str]:
    """Sorted names of the folders in a folder, without hidden ones and those of systems."""
    try:
        with os.scandir(path) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    except OSError:  # a file, or a folder into which we may not look
        return []
    return sorted(name for name in names if name not in STRAY_FOLDERS)


# ------------------------------------------------------------------------------------- lists
def read_lines(path: str) -> list[str]:
    """The lines of a text file in UTF-8, without blank ones; SourceError where there are none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line for line in map(str.strip, file) if line]
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is no text in UTF-8; unpack it again") from error
    if not lines:
        raise SourceError(f"{path} is empty; unpack it again")
    return lines


def read_rows(path: str, columns: int) -> list[list[str]]:
    """Lines as `columns` parts between blanks; the last may hold blanks. SourceError for fewer."""
    rows = [line.split(maxsplit=columns - 1) for line in read_lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise SourceError(
                f"{path}: line {number} is {' '.join(row)!r}, but needs {columns} columns; "
                "unpack it again"
            )
    return rows


def read_json(path: str) -> Any:
    """The content of a JSON file; SourceError where it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise SourceError(f"{path} is no JSON ({error}); download it again") from error


def as_number(text: Any, path: str) -> int:
    """An entry of a list as a whole number; SourceError where it is none."""
    try:
        return int(text)
    except (TypeError, ValueError) as error:
        raise SourceError(f"{path} has {text!r} where a number belongs; unpack it again") from error


def class_numbers(names: Sequence[str], class_names: Sequence[str], path: str) -> list[int]:
    """The number of each class name; SourceError where one is none of the classes."""
    numbers = {name: number for number, name in enumerate(class_names)}
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise SourceError(
            f"{path} names the class {unknown[0]!r}, which is none of the {len(class_names)} "
            "classes; lists and labels must come from the same release"
        )
    return [numbers[name] for name in names]


# ------------------------------------------------------------------------------ class folders
def folders_in(path: str, title: str) -> list[str]:
    """As `visible_folders`; SourceError where there is none."""
    names = visible_folders(path)
    if not names:
        packed = _archives_in(path)
        remedy = f"unpack {packed[0]} and its like" if packed else "check the folder"
        raise SourceError(f"{title}: {path} holds no class folder; {remedy}")
    return names


def class_files(
    root: str,
    folders: Sequence[str],
    class_names: Sequence[str],
    title: str,
    notes: Sequence[str] = (),
) -> Files:
    """All pictures of class folders, folder i of class i; SourceError where one has no picture."""
    check_present(root, folders, title, "class folders")
    wheres = [os.path.relpath(_below(root, folder), root) for folder in folders]
    inside = [pictures_in(os.path.join(root, where)) for where in wheres]
    names = [f"{where}/{x}" for where, held in zip(wheres, inside, strict=True) for x in held]
    labels = [label for label, held in enumerate(inside) for _ in held]
    return Files(root, names, labels, class_names, title=title, notes=notes)


def pictures_in(path: str) -> list[str]:
    """Sorted names of the files directly in a folder whose endings are those of pictures."""
    with os.scandir(path) as entries:
        files = [x.name for x in entries if not x.name.startswith(".") and x.is_file()]
    return sorted(name for name in files if is_called_picture(name))


def strays_note(title: str, folder: str, names: Sequence[str]) -> list[str]:
    """One sentence on what a folder holds beside the set, or none."""
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return [f"{title}: {folder} also holds {names[0]}{more}, left out"] if names else []
