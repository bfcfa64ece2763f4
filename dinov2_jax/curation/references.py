"""Sets of pictures beside the pool, given as name:path: evaluation sets and queries."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.data.fingerprint import names_fingerprint
from dinov2_jax.data.sources.open import KINDS, open_source
from dinov2_jax.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class Set:
    """A named set of pictures."""

    name: str
    source: Source


Sets = tuple[Set, ...]


def open_sets(given: Sequence[str], field: str, pool_path: str) -> Sets:
    """Opens sets that are written name:path, or name:kind:path for other kinds than a folder.

    Raises:
      CurationError: a set without a name or a path, two of one name, or the pool itself.
      SourceError: no picture in a set.
      FileNotFoundError: a path that does not exist.
    """
    found: list[Set] = []
    for text in filter(None, given):
        name, colon, path = text.partition(":")
        if not colon or not name or not path:
            raise CurationError(
                f"config.curate.{field} has {text!r}, which is not written name:path, such as "
                "imagenet:/data/imagenet/val"
            )
        if name in [one.name for one in found]:
            raise CurationError(f"config.curate.{field} has two sets called {name!r}; rename one")
        first, colon, rest = path.partition(":")
        kind, path = (first, rest) if colon and first in KINDS else ("folder", path)
        if pool_path and os.path.realpath(path) == os.path.realpath(pool_path):
            raise CurationError(
                f"config.curate.{field} names the pool itself, {path}, as {name!r}; give another "
                "folder"
            )
        found.append(Set(name, open_source(kind, path, split="all")))
    return tuple(found)


def settings(sets: Sets) -> list[dict[str, Any]]:
    """What stages depend on: names and pictures, not the paths."""
    return [
        {"name": one.name, "pictures": len(one.source), "names": names_fingerprint(one.source)}
        for one in sets
    ]


def readable(features: np.ndarray, one: Set, why: str) -> np.ndarray:
    """Places of a set's readable pictures.

    Raises:
      CurationError: none is readable.
    """
    found = np.flatnonzero(np.isfinite(features).all(axis=1))
    if not len(found):
        raise CurationError(
            f"none of the {len(one.source):,} pictures of {one.name!r} can be read, and {why}; "
            "check its path"
        )
    if len(found) < len(one.source):
        lost = len(one.source) - len(found)
        print(
            f"note: {lost:,} pictures of {one.name} cannot be read; they are left out", flush=True
        )
    return found
