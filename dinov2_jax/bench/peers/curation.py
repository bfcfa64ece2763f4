"""faiss's flat index and its k-means, without sampling of the rows."""

from typing import Any

import numpy as np

from dinov2_jax.bench.draws import draw_unit_vectors
from dinov2_jax.bench.harness import Arrays, Settings, Side


def faiss(settings: Settings) -> Side:
    """settings: as ours/curation.py, and "threads", "device" (the CPU)."""
    import faiss as library

    if settings["device"] != "cpu":
        raise ImportError("faiss-cpu has no GPU index; use --device=cpu")
    library.omp_set_num_threads(settings["threads"])
    rows, queries = draw_unit_vectors(settings)
    if settings["queries"]:
        return _search(library, rows, queries, settings["k"])
    return _step(library, rows, settings["k"])


def _search(library: Any, rows: np.ndarray, queries: np.ndarray, k: int) -> Side:
    index = library.IndexFlatIP(rows.shape[1])
    index.add(rows)

    def check() -> Arrays:
        similarities, found = index.search(queries, k)
        return {"similarities": similarities, "rows": found}

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            index.search(queries, k)

    return Side(check, run, versions={"faiss": library.__version__})


def _step(library: Any, rows: np.ndarray, k: int) -> Side:
    """From the first k rows."""
    every = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
    start = rows[:k].copy()

    def train() -> Any:
        clusters = library.Kmeans(rows.shape[1], k, niter=1, **every)
        clusters.train(rows, init_centroids=start)
        return clusters

    def check() -> Arrays:
        clusters = train()
        distance, _ = clusters.index.search(rows, 1)
        objective = np.array([distance.sum(dtype=np.float64)])
        return {"centroids": clusters.centroids, "objective": objective}

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            train()

    return Side(check, run, versions={"faiss": library.__version__})
