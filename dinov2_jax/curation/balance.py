"""How many pictures each cluster gives, and which: the same share of all as far as they reach."""

import numpy as np

from dinov2_jax.errors import UserError

_STEP, _FIRST, _SECOND = (
    np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def quotas(sizes: np.ndarray, target: int) -> np.ndarray:
    """Pictures that clusters of `sizes` [C] give: int64 [C] that adds up to `target`.

    All give the same number; a cluster that has less gives all it has. What remains, fewer than
    there are clusters, goes one each to those of the lowest index that have more. Raises UserError
    if the clusters hold fewer than `target`.
    """
    sizes = np.asarray(sizes, np.int64)
    if target < 0 or target > sizes.sum():
        raise UserError(
            f"{target:,} pictures are wanted and the clusters hold {int(sizes.sum()):,}; set "
            "config.curate.target to at most that"
        )
    share = _level(np.sort(sizes), target)
    given = np.minimum(sizes, share)
    more = np.flatnonzero(sizes > share)[: target - int(given.sum())]
    given[more] += 1
    return given


def _level(ascending: np.ndarray, target: int) -> int:
    """The largest share at which clusters of these sizes give no more than `target`."""
    count = len(ascending)
    before = np.cumsum(ascending) - ascending
    filled = before + ascending * (count - np.arange(count))  # given at a share of each size
    whole = int(np.searchsorted(filled, target, side="right"))  # clusters that give all they have
    if whole == count:
        return int(ascending[-1]) if count else 0
    return int((target - before[whole]) // (count - whole))


def pick(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    """`n` of the distinct `rows` [N], ascending; all if there are no more.

    The sample depends on the seed and on which rows there are, never on their order. A larger n
    keeps those of a smaller one.
    """
    rows = np.sort(np.asarray(rows))
    if n >= len(rows):
        return rows
    chance = keys(rows, seed)
    return np.sort(rows[np.argsort(chance, kind="stable")[: max(n, 0)]])


def keys(rows: np.ndarray, seed: int) -> np.ndarray:
    """Whole numbers [N] -> uint64 [N], as if drawn at random; different rows never share one.

    It is SplitMix64 (Steele, Lea, Flood 2014) at position `row` of the stream that starts at the
    scattered seed: chance without a state, which no order of the rows and no number of processes
    changes.
    """
    start = _mix(np.asarray([seed % 2**64], np.uint64) * _STEP + _STEP)
    return _mix(start + (np.asarray(rows).astype(np.uint64) + np.uint64(1)) * _STEP)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
