"""Stage "exclude": components of the pool that touch a picture of an evaluation set go as a whole.

part-*.parquet         component, reference: one row for each that is dropped and each set
edges/part-*.parquet   row, reference, record, score, kind (equal, hash or feature)
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation import evidence, references
from dinov2_jax.curation.calibrate import NO_PAIRS, read_whitening
from dinov2_jax.curation.cells import cross_pairs_above
from dinov2_jax.curation.dedup import limits
from dinov2_jax.curation.descriptor import COPY, THUMBNAIL, Descriptor
from dinov2_jax.curation.facts import stream_facts
from dinov2_jax.curation.hashes import BITS, cross_pairs, hash_rows
from dinov2_jax.curation.pictures import read_basis
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.references import Set, Sets
from dinov2_jax.curation.stage import Stage, load_array
from dinov2_jax.curation.tables import write_arrays
from dinov2_jax.curation.whitening import apply
from dinov2_jax.data.decode import DecodeSpec

KINDS = ("hash", "feature")
EQUAL = 0.999  # cosine of equal pictures, in float16


def stage(descriptor: Descriptor, sets: Sets) -> Stage:
    """The stage for these evaluation sets."""

    def settings(pool: Pool) -> Mapping[str, Any]:
        chosen = pool.config.curate.exclude.to_dict()
        return {**chosen, "references": references.settings(sets)}

    reads = ("pictures", "embed", "calibrate", "dedup")
    return Stage("exclude", reads, settings, functools.partial(_run, descriptor, sets))


def _run(descriptor: Descriptor, sets: Sets, pool: Pool, folder: Path) -> Mapping[str, int]:
    found = [_edges(descriptor, one, number, pool) for number, one in enumerate(sets)]
    row, reference, record, score, kind = map(np.concatenate, zip(*found, strict=True))
    order = np.lexsort((kind, record, reference, row))
    names = np.array([one.name for one in sets], object)
    write_arrays(
        {
            "row": row[order],
            "reference": names[reference[order]],
            "record": record[order],
            "score": score[order],
            "kind": np.array(KINDS, object)[kind[order]],
        },
        folder / "edges",
    )
    tables = pool.tables
    touched = tables.of({"row": row, "reference": names[reference]})
    components = tables.read(pool.folder / "dedup").select("row", "component")
    dropped = tables.join(touched, components, "row", "inner")
    dropped = dropped.select("component", "reference").distinct()
    tables.write(dropped, folder, ["component", "reference"])
    left_out = tables.join(components, dropped, "component", "semi")
    return {"rows": dropped.count_rows(), "pictures": left_out.count_rows()}


def _edges(descriptor: Descriptor, one: Set, number: int, pool: Pool) -> tuple[np.ndarray, ...]:
    """Pairs of a pool's row and a set's record that are copies: five columns."""
    rows = np.asarray(load_array(pool.folder / "embed" / "rows.npy"))
    described = descriptor.describe(one.source, one.name)
    features = described[COPY]
    own = references.readable(features, one, "so nothing can be kept out of the evaluation")
    known, hashes = _hashes(one, pool)
    own = np.intersect1d(own, known)  # blank pictures are like all others that are blank
    whitening = read_whitening(pool.folder / "calibrate")
    whitened = apply(whitening, features[own])
    bank = load_array(pool.folder / "calibrate" / f"{COPY}.npy")
    wanted = limits(pool, "references")
    least = wanted.threshold if wanted.threshold < NO_PAIRS else EQUAL
    near = cross_pairs_above(whitened, bank, evidence.CANDIDATE if wanted.aligned else least)
    score = near.cosine
    if wanted.aligned:
        thumbs = load_array(pool.folder / "pictures" / "thumbnail.npy")
        mine = described[THUMBNAIL][own]
        level = evidence.levels(whitening, np.asarray(bank), mine, np.full(len(own), -1))
        score = evidence.scores(mine[near.a], thumbs[rows[near.b]], score, level[near.a])
    keep = score >= least
    parts = [(rows[near.b[keep]], own[near.a[keep]], score[keep], 1)]
    if wanted.hash_bits >= 0:
        pool_hashes = np.asarray(load_array(pool.folder / "pictures" / "hash.npy")[rows])
        a, b, apart = cross_pairs(hashes, pool_hashes, wanted.hash_bits)
        parts.append((rows[b], known[a], 1 - apart / BITS, 0))
    filled = [
        (r, np.full(len(r), number), i, np.asarray(s, np.float32), np.full(len(r), kind))
        for r, i, s, kind in parts
    ]
    return tuple(map(np.concatenate, zip(*filled, strict=True)))


def _hashes(one: Set, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Records of a set that can be read and are not blank, and their hashes by the pool's basis."""
    data, rows = pool.config.data, np.arange(len(one.source))
    thumbs, use = [], []
    for chunk in stream_facts(one.source, rows, DecodeSpec(data.max_pixels), data.workers):
        keep = chunk["readable"] & ~chunk["blank"]
        thumbs.append(chunk["thumbnail"][keep])
        use.append(chunk["row"][keep])
    hashes = hash_rows(read_basis(pool.folder / "pictures"), np.concatenate(thumbs))
    return np.concatenate(use), hashes
