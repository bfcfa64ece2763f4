"""Checks of depths before long work: readable, of the pictures' sizes, in the units that are meant.

Headers of many files and the pixels of a few are read.
"""

from collections.abc import Sequence

import numpy as np

from dinov2_jax.data.decode import WHOLE_RGB, BadImage, load_record
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.dense import DenseSplit
from dinov2_jax.datasets.depth_files import stored_size

MOST_HEADERS = 20_000  # 0.1 ms each
MOST_READ = 32  # pairs whose pixels are read
# Metres between which the middle depth of a set lies: from a desk to a street.
PLAUSIBLE_M = 0.2, 60.0
_UNITS = (1.0, 100.0, 256.0, 1000.0, 4000.0, 5000.0, 10_000.0)  # that cameras and sets store


def check_depths(
    split: DenseSplit, title: str, low: float, high: float, units_per_metre: float
) -> list[str]:
    """Looks at pictures and depths of a split.

    Args:
      title: of the split, for messages.
      low, high: metres between which depths count.
      units_per_metre: by which the depths are read, for messages.

    Returns:
      A sentence on files without any depth, and one on depths that seem to be in other units.

    Raises:
      SourceError: a depth cannot be read, has another size than its picture, or no depth of the
        files that were read lies between `low` and `high`.
    """
    for row in _spread(len(split), MOST_HEADERS):
        stored_size(split.targets[row])
    read, empty = list[np.ndarray](), 0
    rows = _spread(len(split), MOST_READ)
    for row in rows:
        known = _known_depths(split, row, title)
        empty += not known.size
        read.append(known)
    depths = np.concatenate(read)
    if not ((depths > low) & (depths < high)).any():
        raise SourceError(_nothing_between(depths, title, low, high, units_per_metre))
    notes = [f"{title}: {empty} of {len(rows)} depth files that were looked at hold no depth"]
    return notes * (empty > 0) + _units_note(depths, title, units_per_metre)


def _spread(count: int, most: int) -> Sequence[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def _known_depths(split: DenseSplit, row: int, title: str) -> np.ndarray:
    """The depths above 0 of one file, if it has the size of its picture."""
    target = split.target(row)
    try:
        size = load_record(split.pictures, row, WHOLE_RGB).shape[:2]
    except BadImage:  # such pictures are counted, and refused, where all pictures are checked
        size = target.shape
    if size != target.shape:
        raise SourceError(
            f"{title}: {split.pictures.name(row)} has {size[1]} x {size[0]} px, but its depth "
            f"{target.shape[1]} x {target.shape[0]}; resize the depth to the picture, by the "
            "nearest value"
        )
    return target[target > 0]


def _nothing_between(
    depths: np.ndarray, title: str, low: float, high: float, units_per_metre: float
) -> str:
    looked = f"{title}: no depth of the files that were looked at lies between {low:g} and {high:g}"
    if not depths.size:
        return f"{looked} m, because they hold none at all; check the files"
    middle = float(np.median(depths))
    return (
        f"{looked} m, their median is {middle:.3g} m with {units_per_metre:g} units a metre; "
        f"{_remedy(middle * units_per_metre)}"
    )


def _units_note(depths: np.ndarray, title: str, units_per_metre: float) -> list[str]:
    middle = float(np.median(depths))
    if PLAUSIBLE_M[0] <= middle <= PLAUSIBLE_M[1]:
        return []
    return [
        f"{title}: the median depth is {middle:.3g} m with {units_per_metre:g} units a metre, "
        f"which is unlikely; {_remedy(middle * units_per_metre)}"
    ]


def _remedy(middle: float) -> str:
    """What to do where the median of a file's numbers is `middle`."""
    near, far = PLAUSIBLE_M
    likely = [f"{units:g}" for units in _UNITS if near <= middle / units <= far]
    such = f", such as {' or '.join(likely)}" if likely else ""
    return f"set --config.depth.units_per_metre to what the files have for a metre{such}"
