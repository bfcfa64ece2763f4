"""Splits given as folders, or as pictures and labels, turned into fields of `config.data`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dinov2_jax.config.files import ConfigError


def data_settings(splits: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Fields of config.data for splits that are folders, or pairs (pictures, labels)."""
    found, parents = {}, set()
    for split, given in splits.items():
        if isinstance(given, str | os.PathLike) and os.fspath(given):
            path = Path(given).expanduser()
            found[f"data.{split}_path"] = os.fspath(path)
            parents.add(path.absolute().parent)
        elif not isinstance(given, str):
            found |= _write_split(split, given, scratch / "pictures")
            parents.add(scratch / "pictures")
    if found:
        found |= {"data.source": "folder", "data.labels": "folders"}
    if len(parents) == 1:  # the name of the data set is that of the folder of its splits
        found["data.path"] = os.fspath(parents.pop())
    return found


def _write_split(split: str, given: Any, folder: Path) -> dict[str, str]:
    """Writes a list of the pictures and a list of their labels, which `config.data` can name."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ConfigError(
            f"{split} must be a folder with one folder a class, or a pair (pictures, labels), but "
            f"got {type(given).__name__}"
        )
    pictures, labels = given
    if len(pictures) != len(labels):
        raise ConfigError(
            f"{split} has {len(pictures):,} pictures and {len(labels):,} labels; give one for each"
        )
    folder.mkdir(exist_ok=True)
    listed, classes = folder / f"{split}.txt", folder / f"{split}-classes.txt"
    # As bytes: a name may be no UTF-8.
    listed.write_bytes(b"".join(os.fsencode(f"{p}\n") for p in _paths(pictures, folder / split)))
    classes.write_text("".join(f"{label}\n" for label in labels))
    return {f"data.{split}_path": os.fspath(listed), f"data.{split}_labels": os.fspath(classes)}


def _paths(pictures: Sequence[Any], folder: Path) -> Iterator[str]:
    """Absolute paths of the pictures; arrays and PIL pictures become PNG files."""
    for row, picture in enumerate(pictures):
        if not isinstance(picture, str | os.PathLike):
            folder.mkdir(exist_ok=True)
            drawn = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            picture = folder / f"{row:07}.png"
            drawn.save(picture)
        yield os.path.abspath(os.path.expanduser(picture))
