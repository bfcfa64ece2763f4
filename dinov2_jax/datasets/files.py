"""Files of a data set with their labels, and the lists and folders from which they come."""

import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax.data.sources.files import NamedFiles, may_be_picture
from dinov2_jax.data.sources.source import SourceError


class Files(NamedFiles):
    """Pictures or videos below one folder, in the given order.

    Args:
      names: relative to the folder `root`, with "/".
      labels: class numbers int64 [n], -1 where unknown; or None.
      class_names: of the numbers; or None.
      targets: int8 [n, classes] where a picture may have several classes; or None.
      title: the name of the set in messages.

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
    ) -> None:
        if not names:
            raise SourceError(f"{title}: {root} holds no file of this set; check the folder")
        super().__init__(os.path.abspath(root), [os.fsencode(name) for name in names])
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.class_names = None if class_names is None else tuple(class_names)
        self.targets = targets
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


def require(root: str, *choices: str, title: str) -> str:
    """The whole path of the first relative path that exists below `root`, else SourceError."""
    root = os.path.expanduser(root)
    path = next(filter(os.path.exists, (os.path.join(root, choice) for choice in choices)), None)
    if path is None:
        wanted = " or ".join(choices)
        raise SourceError(
            f"{title}: {root} has no {wanted}; name the folder into which the set was unpacked"
        )
    return path


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


def folders_in(path: str, title: str) -> list[str]:
    """Sorted names of the visible folders in a folder; SourceError where there is none."""
    with os.scandir(path) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise SourceError(f"{title}: {path} holds no class folder; check the folder")
    return names


def class_files(root: str, folders: Sequence[str], class_names: Sequence[str], title: str) -> Files:
    """All pictures of class folders, folder i of class i; SourceError where one has no picture."""
    check_present(root, folders, title, "class folders")
    inside = [pictures_in(os.path.join(root, folder)) for folder in folders]
    names = [f"{folder}/{x}" for folder, held in zip(folders, inside, strict=True) for x in held]
    labels = [label for label, held in enumerate(inside) for _ in held]
    return Files(root, names, labels, class_names, title=title)


def pictures_in(path: str) -> list[str]:
    """Names of the files directly in a folder that may be pictures, sorted."""
    with os.scandir(path) as entries:
        files = [x.name for x in entries if not x.name.startswith(".") and x.is_file()]
    return sorted(name for name in files if may_be_picture(os.fsencode(name)))
