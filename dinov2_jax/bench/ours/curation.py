"""Our search in a bank, and our step of k-means."""

import numpy as np

from dinov2_jax.bench.draws import draw_unit_vectors
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours import knn
from dinov2_jax.bench.ours.runtime import configure, side_of
from dinov2_jax.curation import kmeans


def side(settings: Settings) -> Side:
    """settings: as ours/knn.py; without queries, a step of k-means to "k" clusters."""
    return knn.side(settings) if settings["queries"] else _step(settings)


def _step(settings: Settings) -> Side:
    """From the first k rows; preparing the rows is part of it."""
    configure(settings)
    rows, _ = draw_unit_vectors(settings)
    start = rows[: settings["k"]].copy()

    def check() -> Arrays:
        centroids = kmeans.step(rows, start).centroids
        _, distance = kmeans.assign(rows, centroids)
        objective = np.array([distance.sum(dtype=np.float64)])
        return {"centroids": centroids, "objective": objective}

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            kmeans.step(rows, start)

    return side_of(check, run)
