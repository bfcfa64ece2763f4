"""How many pictures each cluster gives, and which: the same share of all as far as they reach."""

from collections.abc import Sequence

import numpy as np

from dinov2_jax.curation.order import scatter
from dinov2_jax.errors import UserError


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


def nested_quotas(sizes: np.ndarray, parents: Sequence[np.ndarray], target: int) -> np.ndarray:
    """Quotas of the finest clusters of a hierarchy: int64 [C], the sum is `target`.

    `sizes` [C] are the pictures of the finest clusters; parents[0] [C] gives the cluster of the
    next level that each belongs to, parents[1] the one above that, and so on. The top level shares
    `target` by `quotas`; each cluster shares its part among its own in the same way. Raises
    UserError if the clusters hold fewer than `target`.
    """
    held = [np.asarray(sizes, np.int64)]
    for above in parents:
        held.append(np.zeros(int(above.max(initial=-1)) + 1, np.int64))
        np.add.at(held[-1], above, held[-2])
    given = quotas(held[-1], target)
    for above, below in zip(reversed(parents), reversed(held[:-1]), strict=True):
        given = _share(below, np.asarray(above), given)
    return given


def _share(sizes: np.ndarray, parent: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Divides what each parent gives among its children."""
    children = np.argsort(parent, kind="stable")
    ends = np.cumsum(np.bincount(parent, minlength=len(given)))
    parts = np.zeros(len(sizes), np.int64)
    for number, group in enumerate(np.split(children, ends[:-1])):
        if given[number]:
            parts[group] = quotas(sizes[group], int(given[number]))
    return parts


def pick(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    """`n` of the distinct `rows` [N], ascending; all if there are no more.

    The sample depends on the seed and on which rows there are, never on their order. A larger n
    keeps those of a smaller one.
    """
    rows = np.sort(np.asarray(rows))
    if n >= len(rows):
        return rows
    chance = scatter(seed, rows)
    return np.sort(rows[np.argsort(chance, kind="stable")[: max(n, 0)]])
