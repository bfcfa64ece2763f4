"""Sources made from others: some records, other class numbers, labels from a file."""

import dataclasses
import os
from typing import Any

import numpy as np

from dinov2_jax.data.sources.label_file import read_classes
from dinov2_jax.data.sources.source import Source, SourceError, notes_of, provenance_of


@dataclasses.dataclass(eq=False)
class View:
    """Chosen records of a source, with labels, class names and targets of its own."""

    source: Source
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    rows: np.ndarray | None = None  # the chosen records, in this order; None: all
    targets: np.ndarray | None = None  # int8 [n, classes] where a picture has several classes

    @property
    def notes(self) -> tuple[str, ...]:
        """The source's notes."""
        return notes_of(self.source)

    @property
    def provenance(self) -> dict[str, Any]:
        """The source's provenance."""
        return provenance_of(self.source)

    def __len__(self) -> int:
        return len(self.source if self.rows is None else self.rows)

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        return self.source[self._row(index)]

    def name(self, index: int) -> str:
        """The source's name of this record."""
        return self.source.name(self._row(index))

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])


def labelled_records(source: Source) -> Source:
    """The records of a source whose label is known."""
    assert source.labels is not None
    known = np.flatnonzero(source.labels >= 0)
    if len(known) == len(source):
        return source
    return View(source, source.labels[known], source.class_names, rows=known)


def renumbered(source: Source, class_names: tuple[str, ...]) -> Source:
    """A source whose classes are some of another's, with that one's numbers.

    Raises SourceError for a class that is not among `class_names`.
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

    Its lines are read by `label_file.read_classes`: names with classes, or classes in the order of
    the records. A class name is a string, also where it is a number: "007" is not "7". An empty
    class is an unknown one, -1.

    Args:
      class_names: those of the training set; None: the classes that occur in the file, sorted (by
        value if all are whole numbers). So a file of 0 ... K - 1 gives these numbers as labels.

    Raises:
      FileNotFoundError: no such file.
      SourceError: as `read_classes`; one number written in two ways, or a class that is not among
        `class_names`.
    """
    given = read_classes(source, os.path.expanduser(path))
    names = class_names or _sorted_names({name for name in given if name}, path)
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    unknown = next((name for name in given if name not in number), None)
    if unknown is not None:
        alike = next((n for n in names if n.lstrip("0") == unknown.lstrip("0")), None)
        hint = f"write it as there, {alike!r}" if alike is not None else "correct the list"
        raise SourceError(
            f"{path} has the class {unknown!r}, which the training set does not have; known are "
            f"{len(names)} classes, such as {names[0]!r}; {hint}"
        )
    return View(source, np.array([number[name] for name in given], np.int64), names)


def _sorted_names(names: set[str], path: str) -> tuple[str, ...]:
    by_value: dict[str, str] = {}
    numbers = [name for name in sorted(names) if name.isascii() and name.isdecimal()]
    for name in numbers:
        first = by_value.setdefault(name.lstrip("0"), name)
        if first != name:
            raise SourceError(
                f"{path} writes one class as {first!r} and as {name!r}; write it in one way only"
            )
    if len(numbers) == len(names):  # by value, of any number of digits
        return tuple(sorted(names, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"))))
    return tuple(sorted(names))
