"""Files that are whole or not there, whenever the program is killed."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an OSError that names no file names `path`; a write to a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and not error.filename:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it takes its place if the body ends without error.

    The folder is made. A file that was there stays whole until it is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # the content is on disk before the name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file, or none."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file in UTF-8, or none; what is no UTF-8 is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, values: Any) -> None:
    """Writes a whole JSON file, or none."""
    write_text(path, json.dumps(values, indent=2) + "\n")
