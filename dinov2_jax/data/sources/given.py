"""Pictures that a program already has: a list of paths, or arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinov2_jax.data.sources.files import read_picture
from dinov2_jax.data.sources.source import SourceError


class Paths:
    """Picture files in the given order; a missing one counts as unreadable."""

    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._paths = [os.path.expanduser(path) for path in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        return read_picture(self._paths[index])

    def name(self, index: int) -> str:
        """The path as given."""
        return self._paths[index]


class Arrays:
    """Pictures as arrays: uint8 [H, W, 3], or [H, W] in gray; sizes may differ.

    Raises:
      SourceError: for another dtype or shape.
    """

    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = [_rgb(np.asarray(array), i) for i, array in enumerate(arrays)]

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._arrays[index]

    def name(self, index: int) -> str:
        """`[index]`."""
        return f"[{index}]"


def _rgb(array: np.ndarray, index: int) -> np.ndarray:
    gray = array.ndim == 2
    if array.dtype != np.uint8 or not (gray or (array.ndim == 3 and array.shape[2] == 3)):
        raise SourceError(
            f"picture {index} is {array.dtype} {list(array.shape)}, but must be uint8 [H, W, 3] "
            "with RGB values of 0 to 255 that are not normalised yet"
        )
    return np.repeat(array[:, :, None], 3, axis=2) if gray else array
