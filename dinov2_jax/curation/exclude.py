"""Stage "exclude": components of the pool that touch a picture of an evaluation set go as a whole.

part-*.parquet         component, reference: one row for each that is dropped and each set
edges/part-*.parquet   row, reference, record, score, kind (equal, hash or feature)
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.curation import evidence, references
from dinov2_jax.curation.calibrate import NO_PAIRS, read_whitening
from dinov2_jax.curation.cells import cross_pairs_above
from dinov2_jax.curation.dedup import limits
from dinov2_jax.curation.descriptor import COPY, Descriptor
from dinov2_jax.curation.facts import collect_facts
from dinov2_jax.curation.hashes import BITS, cross_pairs, hash_rows
from dinov2_jax.curation.pictures import read_basis
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.references import Set, Sets
from dinov2_jax.curation.stage import Stage, load_array
from dinov2_jax.curation.tables import write_arrays
from dinov2_jax.curation.whitening import apply
from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.reader import Batch

KINDS = ("equal", "hash", "feature")
_Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows of the pool, records, scores


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


class _Looked(NamedTuple):
    """Pictures of a set that can be read: records [n], facts of all, descriptors of all."""

    records: np.ndarray
    facts: Batch
    described: Mapping[str, np.ndarray]


def _edges(descriptor: Descriptor, one: Set, number: int, pool: Pool) -> tuple[np.ndarray, ...]:
    """Pairs of a pool's row and a set's record that are copies: five columns."""
    data = pool.config.data
    facts = collect_facts(one.source, DecodeSpec(data.max_pixels), data.workers, one.name)
    described = descriptor.describe(one.source, one.name, facts)
    own = references.readable(described[COPY], one, "so nothing can be kept out of the evaluation")
    parts = [_equal(_Looked(own, facts, described), pool)]
    own = own[~facts["blank"][own]]  # blank pictures are like all others that are blank
    if len(own):
        looked = _Looked(own, facts, described)
        parts += [_near_hashes(looked, pool), _near_features(looked, pool)]
    filled = [
        (row, np.full(len(row), number), record, score, np.full(len(row), KINDS.index(kind)))
        for kind, (row, record, score) in zip(KINDS, parts, strict=False)
    ]
    return tuple(map(np.concatenate, zip(*filled, strict=True)))


def _equal(looked: _Looked, pool: Pool) -> _Pairs:
    """Pictures of equal pixels, blank ones too."""
    digests = np.empty(len(looked.records), object)
    digests[:] = [x.tobytes() for x in looked.facts["pixel_digest"][looked.records]]
    tables = pool.tables
    pictures = tables.read(pool.folder / "pictures")
    pictures = pictures.where(pictures["readable"]).select("row", "pixel_digest")
    others = tables.of({"record": looked.records, "pixel_digest": digests})
    both = tables.join(pictures, others, "pixel_digest", "inner").select("row", "record")
    found = tables.arrays(both, ["row", "record"])
    return found["row"], found["record"], np.ones(len(found["row"]), np.float32)


def _near_hashes(looked: _Looked, pool: Pool) -> _Pairs:
    rows, bits = _rows(pool), limits(pool, "references").hash_bits
    if bits < 0:
        return rows[:0], rows[:0], np.zeros(0, np.float32)
    pictures = pool.folder / "pictures"
    hashes = hash_rows(read_basis(pictures), looked.facts["thumbnail"][looked.records])
    pool_hashes = np.asarray(load_array(pictures / "hash.npy")[rows])
    a, b, apart = cross_pairs(hashes, pool_hashes, bits)
    return rows[b], looked.records[a], (1 - apart / BITS).astype(np.float32)


def _near_features(looked: _Looked, pool: Pool) -> _Pairs:
    rows, wanted = _rows(pool), limits(pool, "references")
    if wanted.threshold >= NO_PAIRS:
        return rows[:0], rows[:0], np.zeros(0, np.float32)
    whitening = read_whitening(pool.folder / "calibrate")
    bank = load_array(pool.folder / "calibrate" / f"{COPY}.npy")
    whitened = apply(whitening, looked.described[COPY][looked.records])
    near = cross_pairs_above(
        whitened, bank, evidence.CANDIDATE if wanted.aligned else wanted.threshold
    )
    score = near.cosine
    if wanted.aligned:
        thumbs = load_array(pool.folder / "pictures" / "thumbnail.npy")
        mine = looked.facts["thumbnail"][looked.records]
        level = evidence.levels(whitening, np.asarray(bank), mine, np.full(len(mine), -1))
        score = evidence.scores(mine[near.a], thumbs[rows[near.b]], score, level[near.a])
    keep = score >= wanted.threshold
    return rows[near.b[keep]], looked.records[near.a[keep]], score[keep].astype(np.float32)


def _rows(pool: Pool) -> np.ndarray:
    return np.asarray(load_array(pool.folder / "embed" / "rows.npy"))
