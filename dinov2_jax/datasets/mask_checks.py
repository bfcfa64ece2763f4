"""Checks of masks before long work: readable, of the pictures' sizes, and with classes in them.

Headers of many files and the pixels of a few are read.
"""

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import WHOLE_RGB, BadImage, guards_off, load_record
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.dense import IGNORED, DenseSplit

MOST_HEADERS = 20_000  # 0.1 ms each
MOST_READ = 32  # pairs whose pixels are read


def check_masks(split: DenseSplit, title: str) -> list[str]:
    """Looks at pictures and masks of a split.

    Args:
      title: of the split, for messages.

    Returns:
      A sentence on masks without any class, or none.

    Raises:
      SourceError: a mask cannot be read, has another size than its picture, or no mask that was
        read holds a class.
    """
    for row in _spread(len(split), MOST_HEADERS):
        _check_header(split.targets[row], title)
    rows = _spread(len(split), MOST_READ)
    empty = sum(not _has_class(split, row, title) for row in rows)
    if empty == len(rows):
        raise SourceError(
            f"{title}: the {empty} masks that were looked at hold no class, such as "
            f"{split.targets[rows[0]]}; give masks with numbers of the classes"
        )
    looked = f"{title}: {empty} of {len(rows)} masks that were looked at hold no class"
    return [looked] * (empty > 0)


def _spread(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def _check_header(path: str, title: str) -> None:
    try:
        with guards_off(), Image.open(path):
            pass
    except OSError as error:
        reason = error.strerror or "no picture in a known format"
        raise SourceError(f"{title}: the mask {path} cannot be read ({reason})") from error


def _has_class(split: DenseSplit, row: int, title: str) -> bool:
    """Whether a mask holds a class; it must have the size of its picture."""
    target = split.target(row)
    try:
        size = load_record(split.pictures, row, WHOLE_RGB).shape[:2]
    except BadImage:  # such pictures are counted, and refused, where all pictures are checked
        size = target.shape
    if size != target.shape:
        raise SourceError(
            f"{title}: {split.pictures.name(row)} has {size[1]} x {size[0]} px, but its mask "
            f"{target.shape[1]} x {target.shape[0]}; resize the mask to the picture, by the "
            "nearest value"
        )
    return bool((target != IGNORED).any())
