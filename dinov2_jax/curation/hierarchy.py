"""Hierarchical k-means with resampling, and balanced samples of it (Vo et al. 2024, 2405.15613).

Level 1 clusters the rows, and each further level the centroids of the one below. Clusters of a
level above are spread more evenly over the space than the rows, and a sample that is shared out
from the top is more even than the pool.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax.curation import kmeans
from dinov2_jax.curation.blocks import Blocks, CurationError

# quotas(sizes int64 [n], target) -> int64 [n]: what each of n parts gives, at most its size.
Quotas = Callable[[np.ndarray, int], np.ndarray]
# pick(rows int64 [n], number, seed) -> int64 [number]: rows of one cluster.
Pick = Callable[[np.ndarray, int, int], np.ndarray]
OnStep = Callable[[int, np.ndarray, float], object]


class Level(NamedTuple):
    """One level of clusters.

    Attributes:
      centroids: fp32 [k, D].
      label: int32 [n], the cluster of each row at level 1, or of each cluster of the level below.
      distance: fp32 [n], squared distances to these centroids.
    """

    centroids: np.ndarray
    label: np.ndarray
    distance: np.ndarray


def fit(
    rows: np.ndarray | Blocks,
    sizes: Sequence[int],
    seed: int,
    *,
    iterations: int = 50,
    resamples: Sequence[int] | None = None,
    nearest: Sequence[int] | None = None,
    on_level: Callable[[int, Level], object] | None = None,
    on_step: OnStep | None = None,
    done: Sequence[Level] = (),
) -> list[Level]:
    """Clusters rows [n, D] level by level.

    With resampling, a level is fitted again, several times, to the rows nearest to each of its
    centroids only: then dense regions, which hold most rows, no longer attract most centroids.

    Args:
      sizes: clusters of each level, from the rows up; each below the one before.
      iterations: updates of each fit.
      resamples: how often each level is fitted again; the default is once at level 1 and 10 times
        above, as in the published web configuration.
      nearest: rows of each cluster that a resample keeps; the default is half of the mean size.
      on_level: gets (number of the level from 1, the level) as soon as it is done.
      on_step: as in `kmeans.fit`, after each update of each fit.
      done: levels of an earlier run, which are taken as they are.

    Raises:
      CurationError: sizes do not fall, or another list has another length; or see `kmeans.fit`.
    """
    blocks = rows if isinstance(rows, Blocks) else Blocks(rows)
    below = [blocks.size, *sizes[:-1]]
    if not sizes or any(not 1 <= k < n for k, n in zip(sizes[1:], below[1:], strict=True)):
        raise CurationError(
            f"the levels have {list(sizes)} clusters; give at least one level, each smaller than "
            "the one before"
        )
    if resamples is None:
        resamples = [1, *[10] * (len(sizes) - 1)]
    if nearest is None:
        nearest = [max(1, n // (2 * max(k, 1))) for n, k in zip(below, sizes, strict=True)]
    _check("resamples", resamples, len(sizes), least=0)
    _check("nearest", nearest, len(sizes), least=1)
    levels = list(done)
    for number in range(len(levels), len(sizes)):
        points = blocks if number == 0 else Blocks(levels[-1].centroids)
        level = _fit_level(
            points, sizes[number], seed + number, iterations, resamples[number], nearest[number],
            on_step,
        )  # fmt: skip
        levels.append(level)
        if on_level is not None:
            on_level(number + 1, level)
    return levels


def _check(name: str, values: Sequence[int], levels: int, least: int) -> None:
    if len(values) != levels or min(values) < least:
        raise CurationError(
            f"{name}={list(values)} for {levels} levels; give one number of at least {least} for "
            "each"
        )


def _fit_level(
    points: Blocks,
    k: int,
    seed: int,
    iterations: int,
    resamples: int,
    nearest: int,
    on_step: OnStep | None,
) -> Level:
    found = kmeans.fit(points, k, iterations, seed, on_step=on_step)
    for again in range(1, resamples + 1):
        chosen = closest(found.label, found.distance, k, nearest)
        subset = np.asarray(points.rows[chosen])
        # From new first centroids: the old ones would hardly leave their places.
        again_fit = kmeans.fit(subset, k, iterations, seed + 1000 * again, on_step=on_step)
        centroids = again_fit.centroids
        label, distance = kmeans.assign(points, centroids)
        found = kmeans.Clusters(centroids, label, distance, [])
    return Level(found.centroids, found.label, found.distance)


def closest(label: np.ndarray, distance: np.ndarray, k: int, most: int) -> np.ndarray:
    """The at most so many rows of each cluster that are nearest to its centroid, ascending int64.

    Args:
      label: int [n] from 0 to k - 1. `distance`: [n]; among equal ones the lower row comes first.
    """
    order = np.lexsort((distance, label))
    starts = np.searchsorted(label[order], np.arange(k))
    rank = np.arange(len(order)) - starts[label[order]]
    return np.sort(order[rank < most])


def flat_labels(levels: Sequence[Level]) -> np.ndarray:
    """The cluster of each row at every level: int32 [n, levels], from level 1 up."""
    columns = [levels[0].label]
    for level in levels[1:]:
        columns.append(level.label[columns[-1]])
    return np.stack(columns, axis=1)


def sample(
    levels: Sequence[Level], target: int, seed: int, *, quotas: Quotas, pick: Pick
) -> np.ndarray:
    """Rows of a sample that is even over the top clusters, then within each, down to the rows.

    Args:
      target: rows of the sample; all rows if the pool has no more.
      quotas: shares a number out over parts by their sizes, `balance.quotas`.
      pick: chooses rows of a cluster of level 1, `balance.pick`; the seed of a cluster is `seed`
        plus its number.

    Returns:
      Ascending rows, int64.

    Raises:
      CurationError: the target is below 1.
    """
    if target < 1:
        raise CurationError(f"target={target} samples nothing; use 1 to the number of rows")
    shares = leaf_shares(levels, target, quotas)
    label = levels[0].label
    order = np.argsort(label, kind="stable")
    clusters = np.split(order, np.searchsorted(label[order], np.arange(1, len(shares))))
    chosen = [
        pick(rows, share, seed + number)
        for number, (rows, share) in enumerate(zip(clusters, shares.tolist(), strict=True))
        if share
    ]
    return np.sort(np.concatenate(chosen))


def leaf_shares(levels: Sequence[Level], target: int, quotas: Quotas) -> np.ndarray:
    """How many rows each cluster of level 1 gives: int64 [k1]."""
    sizes = [np.bincount(levels[0].label, minlength=len(levels[0].centroids))]
    for level in levels[1:]:  # in rows
        sizes.append(np.bincount(level.label, sizes[-1], len(level.centroids)).astype(np.int64))
    shares = quotas(sizes[-1], min(target, int(sizes[-1].sum())))
    for level, below in zip(reversed(levels[1:]), reversed(sizes[:-1]), strict=True):
        parts = np.zeros(len(below), np.int64)
        for parent in np.flatnonzero(shares):
            children = np.flatnonzero(level.label == parent)
            parts[children] = quotas(below[children], int(shares[parent]))
        shares = parts
    return shares
