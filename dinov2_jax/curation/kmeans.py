"""k-means over many rows: k-means++, then Lloyd's steps (paper, appendix A: clusters of the pool).

The same bits come out on any number of devices, and after a resume.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dinov2_jax.curation.blocks import Blocks, CurationError
from dinov2_jax.curation.lloyd import Empty, assign, step
from dinov2_jax.curation.plus_plus import init_centroids

__all__ = ["Clusters", "assign", "fit", "init_centroids", "step"]


class Clusters(NamedTuple):
    """Clusters of n rows.

    Attributes:
      centroids: fp32 [k, D].
      label: int32 [n], the nearest centroid of each row of this process.
      distance: fp32 [n], its squared distance.
      objective: the sum of all squared distances before each update, and at the end.
    """

    centroids: np.ndarray
    label: np.ndarray
    distance: np.ndarray
    objective: list[float]


def fit(
    rows: np.ndarray | Blocks,
    k: int,
    iterations: int,
    seed: int,
    *,
    empty: Empty = "keep",
    start: np.ndarray | None = None,
    on_step: Callable[[int, np.ndarray, float], object] | None = None,
    dtype: str | None = None,
) -> Clusters:
    """Clusters rows [n, D], which may be a memory map larger than the device's memory.

    Args:
      iterations: updates of the centroids; fewer if none moves any more.
      empty: what becomes of clusters without rows, see `lloyd.step`.
      start: centroids [k, D] in place of k-means++. With those that `on_step` got, and the updates
        that were left, the result is that of an unbroken run.
      on_step: gets (updates made here, centroids, objective before the update).
      dtype: of products, see `lloyd.assign`.

    Raises:
      CurationError: k is not between 1 and the number of rows, a row is not finite, or `start` has
        another shape.
    """
    blocks = rows if isinstance(rows, Blocks) else Blocks(rows)
    if start is None:
        start = init_centroids(blocks, k, seed)
    elif np.shape(start) != (k, blocks.width):
        raise CurationError(
            f"the first centroids have the shape {list(np.shape(start))}; k={k} clusters of these "
            f"rows need [{k}, {blocks.width}]"
        )
    centroids, objective = np.asarray(start, np.float32), []
    for number in range(1, iterations + 1):
        done = step(blocks, centroids, empty=empty, dtype=dtype)
        objective.append(done.objective)
        if np.array_equal(done.centroids, centroids):
            return Clusters(centroids, done.label, done.distance, objective)
        centroids = done.centroids
        if on_step is not None:
            on_step(number, centroids, done.objective)
    last = step(blocks, centroids, dtype=dtype)
    return Clusters(centroids, last.label, last.distance, [*objective, last.objective])
