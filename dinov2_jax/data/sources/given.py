"""Pictures that a program holds already: paths in a list, arrays, or PIL pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import BadImage, from_pillow
from dinov2_jax.data.sources.files import NamedFiles
from dinov2_jax.data.sources.source import SourceError, Unlabelled


class Paths(NamedFiles):
    """Picture files in the order given, by whole paths; a missing one counts as unreadable."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        super().__init__("", [os.fsencode(os.path.expanduser(path)) for path in paths])

    def require_all(self) -> None:
        """Raises FileNotFoundError, with up to three names, unless all files exist."""
        lost = [path for path in map(self.path, range(len(self))) if not os.path.exists(path)]
        if lost:
            more = f" and {len(lost) - 3:,} more" if len(lost) > 3 else ""
            verb = "do" if len(lost) > 1 else "does"
            raise FileNotFoundError(f"{', '.join(lost[:3])}{more} {verb} not exist")


class Arrays(Unlabelled):
    """Pictures as arrays uint8 [H, W, C] or [H, W] (gray), where C is 1, 3 or `channels`.

    Sizes may differ. Another dtype or shape raises SourceError.
    """

    def __init__(self, arrays: Sequence[np.ndarray], channels: int = 3) -> None:
        self._arrays = [_picture(np.asarray(x), i, channels) for i, x in enumerate(arrays)]
        if not self._arrays:
            raise SourceError("the array of pictures is empty; give at least one picture")

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._arrays[index]

    def name(self, index: int) -> str:
        """`[index]`."""
        return f"[{index}]"


class Pictures(Unlabelled):
    """PIL pictures of any mode, decoded as files are: upright, alpha on white, RGB."""

    def __init__(self, pictures: Sequence[Image.Image]) -> None:
        self._pictures = list(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            return from_pillow(self._pictures[index])
        except BadImage as error:
            raise OSError(str(error)) from error

    def name(self, index: int) -> str:
        """The file that it was opened from, or `[index]`."""
        return getattr(self._pictures[index], "filename", "") or f"[{index}]"


def _picture(array: np.ndarray, index: int, channels: int) -> np.ndarray:
    """uint8 [H, W, C]."""
    picture = array[:, :, None] if array.ndim == 2 else array
    known = picture.ndim == 3 and picture.shape[2] in (1, 3, channels)
    if picture.dtype != np.uint8 or not known or 0 in picture.shape:
        raise SourceError(
            f"picture {index} is {array.dtype} {list(array.shape)}, but must be uint8 "
            f"[H, W, {channels}] with values of 0 to 255 that are not normalised yet; several "
            f"pictures are [n, H, W, {channels}] or a list"
        )
    return picture
