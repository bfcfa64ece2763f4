"""Sources made of others: some records, other numbers of classes, labels from elsewhere."""

from __future__ import annotations

import os

import numpy as np

from dinov2_jax.data.sources.source import Source, SourceError


class View:
    """Records of a source under labels of its own.

    Args:
      source: pictures.
      labels: of the chosen records; or None.
      class_names: of the labels; or None.
      rows: the chosen records, in this order; None for all.
      targets: of sets where a picture has several classes; or None.
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None,
        *,
        rows: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ) -> None:
        self._source, self._rows = source, rows
        self.labels, self.class_names, self.targets = labels, class_names, targets

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        return self._source[self._row(index)]

    def name(self, index: int) -> str:
        """That of the source."""
        return self._source.name(self._row(index))

    def _row(self, index: int) -> int:
        return index if self._rows is None else int(self._rows[index])


def labelled_records(source: Source) -> Source:
    """The records of a source whose label is known."""
    assert source.labels is not None
    known = np.flatnonzero(source.labels >= 0)
    if len(known) == len(source):
        return source
    return View(source, source.labels[known], source.class_names, rows=known)


def renumbered(source: Source, class_names: tuple[str, ...]) -> Source:
    """A source whose classes are some of another's, with that one's numbers.

    Raises:
      SourceError: a class that is not among `class_names`.
    """
    own, labels = source.class_names, source.labels
    assert own is not None and labels is not None
    odd = sorted(set(own) - set(class_names))
    if odd:
        raise SourceError(
            f"{len(odd)} of {len(own)} classes, such as {odd[0]!r}, are not among the "
            f"{len(class_names)} of the training set, such as {class_names[0]!r}; both need the "
            "same names of classes"
        )
    place = {name: number for number, name in enumerate(class_names)}
    numbers = np.array([place[name] for name in own] + [-1])  # -1 stays -1
    return View(source, numbers[labels], class_names)


def with_label_file(
    source: Source, path: str, class_names: tuple[str, ...] | None = None
) -> Source:
    """A source with the labels of a text file.

    Its lines are classes (names or numbers) in the order of the records, or `<name> TAB <class>`
    with the names of the records in any order. An empty class is an unknown one, -1.

    Args:
      source: pictures.
      path: the text file.
      class_names: of a set that this one belongs to; None: those of the file, sorted, or as many
        as the greatest number says.

    Raises:
      FileNotFoundError: no such file.
      SourceError: another number of lines than records, a name without a line, or a class that is
        not among `class_names`.
    """
    given = _classes(source, os.path.expanduser(path))
    names = class_names or _names_of(given)
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    unknown = next((name for name in given if name not in number), None)
    if unknown is not None:
        raise SourceError(
            f"{path} has the class {unknown!r}, which the training set does not have; known are "
            f"{len(names)} classes, such as {names[0]!r}"
        )
    return View(source, np.array([number[name] for name in given], np.int64), names)


def _classes(source: Source, path: str) -> list[str]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the label file {path} does not exist")
    with open(path, encoding="utf-8-sig") as file:
        lines = file.read().splitlines()
    if any("\t" in line for line in lines):
        pairs = dict(line.split("\t", 1) for line in lines if "\t" in line)
        names = [source.name(row) for row in range(len(source))]
        lost = next((name for name in names if name not in pairs), None)
        if lost is not None:
            raise SourceError(f"{path} has no line for {lost}; add '<name> TAB <class>' for it")
        return [_plain(pairs[name]) for name in names]
    if len(lines) != len(source):
        raise SourceError(
            f"{path} has {len(lines):,} lines for {len(source):,} pictures; it needs one class a "
            "line, in the order of the pictures"
        )
    return [_plain(line) for line in lines]


def _plain(name: str) -> str:
    """Without spaces around, and 007 as 7."""
    name = name.strip()
    return str(int(name)) if name.isdecimal() else name


def _names_of(classes: list[str]) -> tuple[str, ...]:
    found = {name for name in classes if name}
    if found and all(name.isdecimal() for name in found):
        return tuple(str(number) for number in range(max(map(int, found)) + 1))
    return tuple(sorted(found))
