"""A number for each row that depends on nothing but the row and a seed: chance without a state."""

import numpy as np

_STEP, _FIRST, _SECOND = (
    np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def scatter(seed: int, rows: np.ndarray) -> np.ndarray:
    """Whole numbers [N] -> uint64 [N], as if drawn at random; different rows never share one.

    It is SplitMix64 (Steele, Lea, Flood 2014) at position `row` of the stream that starts at the
    scattered seed, so no order of the rows, and no number of processes, changes it.
    """
    start = _mix(np.asarray([seed % 2**64], np.uint64) * _STEP + _STEP)
    return _mix(start + (np.asarray(rows).astype(np.uint64) + np.uint64(1)) * _STEP)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
