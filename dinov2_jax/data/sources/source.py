"""What every source of pictures offers.

A source is a random-access list of records. A record is either encoded bytes or uint8 [H, W, 3].
Sources are pickled once into every worker process and open their files there.
"""

import difflib
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dinov2_jax.errors import UserError

# What a source without splits of its own is divided into.
SPLITS = ("train", "test", "all")


class SourceError(UserError):
    """A source that cannot be opened or holds nothing; the message is one sentence."""


class NoSplitError(SourceError):
    """A source that is not divided was asked for its validation or test pictures."""


class Source(Protocol):
    """Random access to pictures; picklable."""

    class_names: tuple[str, ...] | None

    @property
    def labels(self) -> np.ndarray | None:
        """Class numbers, int64 [len(self)], or None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        """Encoded bytes or uint8 [H, W, 3]. Raises OSError where it cannot be read."""

    def name(self, index: int) -> str:
        """What a user can find the record by, for instance its path."""


class Unlabelled:
    """A source without labels."""

    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None


def notes_of(source: Source) -> tuple[str, ...]:
    """What a source left out or took for a split, one sentence each, for the first lines of a run.

    Sources that decide nothing have no `notes`.
    """
    return getattr(source, "notes", ())


def provenance_of(source: Source) -> dict[str, Any]:
    """What made a source, for the provenance of a run; {} for pictures as they were found."""
    return getattr(source, "provenance", {})


def check_name(field: str, value: str, valid: Sequence[str]) -> None:
    """Raises SourceError with the nearest of `valid` unless `value` is one of them."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SourceError(f"{field}={value!r} is none of {', '.join(map(repr, valid))}{hint}")


def check_same_classes(bank: Source, query: Source) -> None:
    """Raises SourceError where the class numbers of two sources mean different classes."""
    ours, theirs = set(bank.class_names or ()), set(query.class_names or ())
    if ours != theirs:
        odd = sorted(ours ^ theirs)
        raise SourceError(
            f"the bank has {len(ours)} classes and the queries {len(theirs)}, {len(odd)} of them "
            f"on one side only, such as {odd[0]!r}; k-NN needs the same class folders in both"
        )


def not_found(path: str) -> FileNotFoundError:
    """The error for a path that does not exist; it names the most similar one beside it."""
    parent, name = os.path.split(os.path.abspath(path))
    siblings = os.listdir(parent) if os.path.isdir(parent) else []
    near = difflib.get_close_matches(name, siblings, n=1)
    hint = f"; did you mean {os.path.join(parent, near[0])}?" if near else ""
    return FileNotFoundError(f"data.path={path} does not exist{hint}")


def read_record(records: Any, index: int) -> Any:
    """A record of an ArrayRecord file.

    Raises OSError where its chunk is damaged; the records of other chunks can still be read.
    """
    try:
        return records[index]
    except RuntimeError as error:
        raise OSError(short_message(error)) from error


def short_message(error: Exception) -> str:
    """The first line of an error, up to where it says something; its type where it is silent."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    for line in lines[1:]:
        if not text.endswith(":"):
            break
        text = f"{text} {line.removeprefix('* ')}"
    return text.rstrip(".:")
