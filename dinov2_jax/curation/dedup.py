"""Stage "dedup": pairs of copies, what they connect, and which picture of each component stays.

part-*.parquet         row, component (its lowest row), kept; all rows, unreadable ones not kept
edges/part-*.parquet   a, b, score, kind: bytes, pixels, blank, hash, feature
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.curation import evidence
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.calibrate import NO_PAIRS, read_whitening
from dinov2_jax.curation.cells import Pairs, pairs_above, plan_pairs
from dinov2_jax.curation.components import labels
from dinov2_jax.curation.descriptor import COPY
from dinov2_jax.curation.hashes import BITS, grey, near_pairs
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import Stage, load_array
from dinov2_jax.curation.tables import read_arrays, write_arrays
from dinov2_jax.run.progress import Progress

KINDS = ("bytes", "pixels", "blank", "hash", "feature")
# A component of so many different pictures is no mistake of the threshold in a small pool.
_LEAST_LARGE = 50
_PAIRS = 1 << 14  # looked at again at once


class Edges(NamedTuple):
    """Pairs of rows a < b, their score (cosine, or the share of equal bits) and place in KINDS."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray
    kind: np.ndarray


def settings(pool: Pool) -> Mapping[str, Any]:
    return pool.config.curate.dedup.to_dict()


def run(pool: Pool, folder: Path) -> Mapping[str, int]:
    pictures = pool.folder / "pictures"
    columns = ("readable", "blank", "width", "height", "byte_digest")
    facts = read_arrays(pictures, columns)
    first = np.asarray(load_array(pictures / "first.npy"))
    found = [
        _equal_pixels(first, facts["byte_digest"]),
        _blanks(pictures, facts, first),
        _near_hashes(pool, pictures),
        _near_features(pool),
    ]
    edges = Edges(*map(np.concatenate, zip(*found, strict=True)))
    edges = Edges(*(x[np.lexsort((edges.kind, edges.b, edges.a))] for x in edges))
    component = labels(pool.rows, edges.a, edges.b)
    _refuse_giant(pool, component, first)
    kept = _keep(component, facts)
    _write_edges(edges, folder)
    write_arrays(
        {"row": np.arange(pool.rows), "component": component.astype(np.int64), "kept": kept}, folder
    )
    readable = int(facts["readable"].sum())
    return {"rows": pool.rows, "kept": int(kept.sum()), "copies": readable - int(kept.sum())}


class Limits(NamedTuple):
    """From where on pictures are copies.

    Attributes:
      threshold: least cosine, or least evidence if `aligned`; NO_PAIRS: descriptors say nothing.
      hash_bits: most bits in which hashes differ; -1: hashes say nothing.
      aligned: edges are laid over each other, see `evidence`.
    """

    threshold: float
    hash_bits: int
    aligned: bool


def limits(pool: Pool, kind: str = "pool") -> Limits:
    """The configured threshold, or else what stage "calibrate" chose."""
    section = pool.config.curate.dedup if kind == "pool" else pool.config.curate.exclude
    path = pool.folder / "calibrate" / "thresholds.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    bits = min(section.hash_bits, known["hash_bits"][kind])
    if section.threshold:
        return Limits(section.threshold, bits, False)
    return Limits(known[kind], bits, known["aligned"])


def _equal_pixels(first: np.ndarray, digests: np.ndarray) -> Edges:
    b = np.flatnonzero(first != np.arange(len(first)))
    a = first[b]
    same = np.array([digests[x] == digests[y] for x, y in zip(a, b, strict=True)], bool)
    kind = np.where(same, KINDS.index("bytes"), KINDS.index("pixels"))
    return _edges(a, b, np.ones(len(b)), kind)


def _blanks(pictures: Path, facts: Mapping[str, np.ndarray], first: np.ndarray) -> Edges:
    """Blank pictures of the same grey are copies: to a descriptor all blank ones are."""
    rows = np.flatnonzero(facts["blank"] & (first == np.arange(len(first))))
    thumbs = load_array(pictures / "thumbnail.npy")[rows]
    tone = np.rint(grey(thumbs).mean(axis=1) / 4) if len(rows) else np.zeros(0)
    _, start, group = np.unique(tone, return_index=True, return_inverse=True)
    a, b = rows[start[group]], rows
    other = a != b
    return _edges(a[other], b[other], np.ones(int(other.sum())), KINDS.index("blank"))


def _near_hashes(pool: Pool, pictures: Path) -> Edges:
    bits = limits(pool).hash_bits
    rows = np.asarray(load_array(pool.folder / "embed" / "rows.npy"))
    if bits < 0:
        return _edges(rows[:0], rows[:0], np.zeros(0), 0)
    a, b, apart = near_pairs(np.asarray(load_array(pictures / "hash.npy")[rows]), bits)
    return _edges(rows[a], rows[b], 1 - apart / BITS, KINDS.index("hash"))


def _near_features(pool: Pool) -> Edges:
    """Pairs of descriptors above the threshold, through cells where the pool is large."""
    rows = np.asarray(load_array(pool.folder / "embed" / "rows.npy"))
    features = load_array(pool.folder / "calibrate" / f"{COPY}.npy")
    wanted = limits(pool)
    if wanted.threshold >= NO_PAIRS:
        return _edges(rows[:0], rows[:0], np.zeros(0), 0)
    how = plan_pairs(*features.shape)
    method = f"{how.cells:,} cells" if how.cells else "all pairs"
    print(
        f"comparing {len(rows):,} pictures by {method}: {how.share:.1%} of the pairs, "
        f"about {how.seconds:,.0f} s; threshold {wanted.threshold:.3f}, hashes within "
        f"{wanted.hash_bits} bits",
        flush=True,
    )
    progress = Progress(max(1, how.cells), unit="cell")
    least = evidence.CANDIDATE if wanted.aligned else wanted.threshold
    found = pairs_above(features, least, on_cell=lambda cell, *_: progress.update(cell + 1))
    progress.close()
    a, b, score = found.a, found.b, found.cosine
    if wanted.aligned:
        score = _evidence(pool, rows, features, found)
        keep = score >= wanted.threshold
        a, b, score = a[keep], b[keep], score[keep]
    return _edges(rows[a], rows[b], score, KINDS.index("feature"))


def _evidence(pool: Pool, rows: np.ndarray, features: np.ndarray, found: Pairs) -> np.ndarray:
    """Looks at candidates again: float32 [P]."""
    thumbs = load_array(pool.folder / "pictures" / "thumbnail.npy")
    known = read_whitening(pool.folder / "calibrate")
    places = np.unique(np.concatenate([found.a, found.b]))
    level = np.zeros(len(rows), np.float32)
    if len(places):
        level[places] = evidence.levels(known, features, thumbs[rows[places]], places)
    score = np.empty(len(found.a), np.float32)
    for start in range(0, len(score), _PAIRS):
        a, b = (x[start : start + _PAIRS] for x in (found.a, found.b))
        ours, theirs = thumbs[rows[a]], thumbs[rows[b]]
        cosine = found.cosine[start : start + _PAIRS]
        score[start : start + _PAIRS] = evidence.scores(
            ours, theirs, cosine, (level[a] + level[b]) / 2
        )
    return score


def _edges(a: np.ndarray, b: np.ndarray, score: np.ndarray, kind: int | np.ndarray) -> Edges:
    kind = np.broadcast_to(np.asarray(kind, np.int8), a.shape)
    return Edges(a.astype(np.int64), b.astype(np.int64), score.astype(np.float32), kind)


def _keep(component: np.ndarray, facts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Keeps the picture with the most pixels of each component; the lowest row of equal ones."""
    size = facts["width"].astype(np.int64) * facts["height"]
    rows = np.arange(len(component))
    order = np.lexsort((rows, -size, component))
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))
    kept = np.zeros(len(component), bool)
    kept[order[starts]] = True
    return kept & facts["readable"]


def _refuse_giant(pool: Pool, component: np.ndarray, first: np.ndarray) -> None:
    """A component that holds much of the pool is a chain of false edges."""
    different = component[first == np.arange(len(first))]
    sizes = np.bincount(different)
    largest, most = int(sizes.argmax()), pool.config.curate.dedup.max_component
    if sizes[largest] > max(_LEAST_LARGE, most * len(different)):
        rows = np.flatnonzero(component == largest)[:3]
        names = ", ".join(pool.source.name(int(row)) for row in rows)
        raise CurationError(
            f"{sizes[largest]:,} different pictures, such as {names}, would be copies of one "
            f"another, more than {most:.0%} of the pool; set --config.curate.dedup.threshold to a "
            f"cosine such as 0.9, --config.curate.dedup.hash_bits below {limits(pool).hash_bits}, "
            "or allow it with --config.curate.dedup.max_component"
        )


def _write_edges(edges: Edges, folder: Path) -> None:
    kinds = np.array(KINDS, object)[edges.kind]
    write_arrays(edges._asdict() | {"kind": kinds}, folder / "edges")


STAGE = Stage("dedup", ("pictures", "embed", "calibrate"), settings, run)
