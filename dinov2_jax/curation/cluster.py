"""Stage "cluster": k-means of what is kept, and of its centroids, level by level.

part-*.parquet    row, cluster (of the finest level), squared distance to its centre
centroids-0.npy   float32 [k, D], the finest level; centroids-1.npy: the level above, ...
label-0.npy       int32 [n], the cluster of each picture; label-1.npy: of each centroid of level 0
distance-0.npy    float32, squared distances to these centroids
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation import hierarchy
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.descriptor import SUBJECT
from dinov2_jax.curation.levels import read_levels, save_level
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.sample import kept_rows
from dinov2_jax.curation.stage import Stage, load_array
from dinov2_jax.curation.tables import write_arrays
from dinov2_jax.features.search import unit
from dinov2_jax.run.progress import Progress

# Fewer rows a cluster than this describe noise; faiss warns at the same number.
_ROWS_PER_CLUSTER = 39


def stage(used: tuple[str, ...]) -> Stage:
    """The stage for a run that uses these stages."""
    reads = tuple(name for name in ("embed", "dedup", "exclude") if name in used)

    def settings(pool: Pool) -> Mapping[str, Any]:
        return pool.config.curate.kmeans.to_dict() | {"seed": pool.config.seed}

    def run(pool: Pool, folder: Path) -> Mapping[str, int]:
        rows, features = kept_features(pool, reads)
        wanted = pool.config.curate.kmeans
        _check_sizes(wanted.sizes, len(rows))
        done = read_levels(folder)
        resamples = [1 if level == 0 else 10 for level in range(len(wanted.sizes))]
        if not wanted.resample:
            resamples = [0] * len(wanted.sizes)
        fits = len(resamples[len(done) :]) + sum(resamples[len(done) :])
        progress = _Steps(fits * wanted.iterations)
        found = hierarchy.fit(
            features,
            wanted.sizes,
            pool.config.seed,
            iterations=wanted.iterations,
            resamples=resamples,
            on_level=functools.partial(save_level, folder),
            on_step=progress.step,
            done=done,
        )
        progress.close()
        finest = found[0]
        write_arrays({"row": rows, "cluster": finest.label, "distance": finest.distance}, folder)
        used_clusters = int((np.bincount(finest.label) > 0).sum())
        return {"rows": len(rows), "clusters": used_clusters, "levels": len(found)}

    return Stage("cluster", reads, settings, run, goes_on=True)


class _Steps(Progress):
    """Counts the updates of all fits; the total is what they take at most."""

    def __init__(self, total: int) -> None:
        super().__init__(total, unit="k-means update")
        self._count = 0

    def step(self, step: int, centroids: np.ndarray, objective: float) -> None:
        self._count += 1
        self.update(self._count, objective=objective)


def kept_features(pool: Pool, reads: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are kept and have a descriptor, and those of subjects: unit rows float16."""
    rows = np.asarray(load_array(pool.folder / "embed" / "rows.npy"))
    kept = kept_rows(pool, reads)
    places = np.flatnonzero(np.isin(rows, kept))
    features = load_array(pool.folder / "embed" / "features" / f"{SUBJECT}.npy")
    found = np.empty((len(places), features.shape[1]), np.float16)
    for start in range(0, len(places), 1 << 16):
        part = places[start : start + (1 << 16)]
        found[start : start + (1 << 16)] = unit(features[part])
    return rows[places], found


def _check_sizes(sizes: tuple[int, ...], rows: int) -> None:
    k = sizes[0]
    if k > rows:
        raise CurationError(
            f"config.curate.kmeans.sizes asks for {k:,} clusters of {rows:,} pictures; use "
            f"{max(1, rows // _ROWS_PER_CLUSTER):,} or fewer"
        )
    if rows < _ROWS_PER_CLUSTER * k:
        print(
            f"note: {rows:,} pictures in {k:,} clusters are fewer than {_ROWS_PER_CLUSTER} each; "
            "clusters will follow chance",
            flush=True,
        )
