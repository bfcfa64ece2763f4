"""Stage "cluster": k-means of what is kept, and of its centroids, level by level.

part-*.parquet       row, cluster (of the finest level), distance
centroids-0.npy      float32 [k, D], the finest level; centroids-1.npy: the level above, ...
parent-0.npy         int32 [k], the cluster of level 1 that each of level 0 belongs to, ...
objective.json       sums of squared distances, by level and iteration
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation import kmeans
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.descriptor import SUBJECT
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.sample import kept_rows
from dinov2_jax.curation.stage import Stage, load_array, save_array
from dinov2_jax.curation.tables import write_arrays
from dinov2_jax.features.search import unit
from dinov2_jax.run.files import write_json
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
        found = _fit_levels(pool, features)
        for level, clusters in enumerate(found):
            save_array(folder / f"centroids-{level}.npy", clusters.centroids)
            if level:
                save_array(folder / f"parent-{level - 1}.npy", clusters.label)
        write_json(folder / "objective.json", [clusters.objective for clusters in found])
        finest = found[0]
        write_arrays({"row": rows, "cluster": finest.label, "distance": finest.distance}, folder)
        used_clusters = int((np.bincount(finest.label) > 0).sum())
        return {"rows": len(rows), "clusters": used_clusters, "levels": len(found)}

    return Stage("cluster", reads, settings, run)


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


def _fit_levels(pool: Pool, features: np.ndarray) -> list[kmeans.Clusters]:
    """k-means of the rows, then of the centroids of each level before.

    DINOv2: the paper has one level; more levels are those of Vo et al. (2024), section 3.2.
    """
    wanted, found = pool.config.curate.kmeans, list[kmeans.Clusters]()
    rows = features
    for level, k in enumerate(wanted.sizes):
        if k > len(rows):
            raise CurationError(
                f"config.curate.kmeans.sizes asks for {k:,} clusters of {len(rows):,} "
                f"{'centroids' if level else 'pictures'}; use {max(1, len(rows) // 40):,} or fewer"
            )
        if len(rows) < _ROWS_PER_CLUSTER * k and not level:
            print(
                f"note: {len(rows):,} pictures in {k:,} clusters are fewer than "
                f"{_ROWS_PER_CLUSTER} each; clusters will follow chance",
                flush=True,
            )
        progress = Progress(wanted.iterations, unit=f"k-means iteration of level {level}")

        def tell(step: int, centroids: np.ndarray, objective: float, bar: Progress = progress) -> None:
            bar.update(step, objective=objective)

        how = {"empty": "split", "on_step": tell}
        found.append(kmeans.fit(rows, k, wanted.iterations, pool.config.seed + level, **how))
        progress.close()
        rows = found[-1].centroids
    return found
