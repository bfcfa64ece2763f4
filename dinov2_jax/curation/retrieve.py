"""Stage "retrieve": what the pool has that is like the pictures of the query sets.

part-*.parquet   row, query_set, how (sample or cluster), query (record), rank, cosine
"""

# DINOv2: the paper retrieves in features of a ViT-H/16 of its own; here the subjects' descriptor.

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation import references
from dinov2_jax.curation.balance import pick
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.cells import nearest, nearest_cells
from dinov2_jax.curation.cluster import kept_features
from dinov2_jax.curation.descriptor import SUBJECT, Descriptor
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.references import Sets
from dinov2_jax.curation.stage import Stage, load_array
from dinov2_jax.curation.tables import read_arrays, write_arrays
from dinov2_jax.features.search import unit

Found = dict[str, np.ndarray]


def stage(descriptor: Descriptor, sets: Sets, used: tuple[str, ...]) -> Stage:
    """The stage for these query sets, in a run that uses these stages."""
    reads = tuple(name for name in ("embed", "dedup", "exclude", "cluster") if name in used)

    def settings(pool: Pool) -> Mapping[str, Any]:
        chosen = pool.config.curate.retrieve.to_dict()
        return {**chosen, "queries": references.settings(sets), "seed": pool.config.seed}

    return Stage("retrieve", reads, settings, functools.partial(_run, descriptor, sets, reads))


def _run(
    descriptor: Descriptor, sets: Sets, reads: tuple[str, ...], pool: Pool, folder: Path
) -> Mapping[str, int]:
    wanted = pool.config.curate.retrieve
    rows, bank = kept_features(pool, reads)
    parts: list[Found] = []
    for one in sets:
        features = descriptor.describe(one.source, one.name)[SUBJECT]
        own = references.readable(features, one, "so nothing can be found by it")
        queries = unit(features[own])
        found: list[Found] = []
        if wanted.how in ("sample", "both"):
            found.append(by_sample(queries, own, rows, bank, wanted.neighbours))
        if wanted.how in ("cluster", "both"):
            found.append(_by_cluster(queries, own, pool, rows, bank))
        whole = {n: np.concatenate([part[n] for part in found]) for n in found[0]}
        parts.append(_capped(whole, wanted.per_set, pool.config.seed) | {"name": one.name})
    names = np.concatenate([np.full(len(part["row"]), part.pop("name"), object) for part in parts])
    table = {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
    order = np.lexsort((table["rank"], table["query"], table["how"].astype(str), table["row"]))
    write_arrays({"query_set": names[order], **{n: x[order] for n, x in table.items()}}, folder)
    return {"rows": len(names), "pictures": len(np.unique(table["row"]))}


def by_sample(
    queries: np.ndarray, records: np.ndarray, rows: np.ndarray, bank: np.ndarray, k: int
) -> Found:
    """The k nearest pictures of each query (paper, section 3: k = 4; 32 for small sets).

    Raises:
      CurationError: k is more than there are pictures.
    """
    if k > len(rows):
        raise CurationError(
            f"config.curate.retrieve.neighbours={k} is {k - len(rows)} more than the {len(rows)} "
            "pictures that are left in the pool; lower it"
        )
    cosine, places = nearest(queries, bank, k)
    return _columns(
        row=rows[places].ravel(),
        how=np.full(places.size, "sample", object),
        query=np.repeat(records, k),
        rank=np.tile(np.arange(k), len(records)),
        cosine=cosine.ravel(),
    )


def _by_cluster(
    queries: np.ndarray, records: np.ndarray, pool: Pool, rows: np.ndarray, bank: np.ndarray
) -> Found:
    """Pictures of the clusters with more than `more_than` queries, `per_cluster` of each."""
    wanted, folder = pool.config.curate.retrieve, pool.folder / "cluster"
    centroids = np.asarray(load_array(folder / "centroids-0.npy"))
    labels = read_arrays(folder, ("row", "cluster"))
    hits = np.bincount(nearest_cells(queries, centroids, 1)[:, 0], minlength=len(centroids))
    chosen = [
        pick(labels["row"][labels["cluster"] == cluster], wanted.per_cluster, pool.config.seed)
        for cluster in np.flatnonzero(hits > wanted.more_than)
    ]
    found = np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))
    if not len(found):
        return _columns(row=found, how=found.astype(object), query=found, rank=found, cosine=found)
    near, which = nearest(bank[np.searchsorted(rows, found)], queries, 1)
    return _columns(
        row=found,
        how=np.full(len(found), "cluster", object),
        query=records[which[:, 0]],
        rank=np.zeros(len(found), np.int64),
        cosine=near[:, 0],
    )


def _columns(**columns: np.ndarray) -> Found:
    types = {"row": np.int64, "query": np.int64, "rank": np.int32, "cosine": np.float32}
    return {name: x.astype(types.get(name, object)) for name, x in columns.items()}


def _capped(found: Found, most: int, seed: int) -> Found:
    """At most so many pictures of a set, chosen by a hash of their rows."""
    kept = np.isin(found["row"], pick(np.unique(found["row"]), most, seed))
    return {name: values[kept] for name, values in found.items()}
