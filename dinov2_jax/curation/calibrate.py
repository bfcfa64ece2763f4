"""Stage "calibrate": whitening and thresholds, from copies that are made of the user's pictures.

whitening.npz     mean [D], matrix [D, width]
copy.npy          float16 [m, width], all whitened descriptors, of length 1
thresholds.json   pool, references, how they were found
curve.json        recall by edit and the share of falsely linked pictures, by threshold
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation import thresholds, whitening
from dinov2_jax.curation.balance import pick
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.descriptor import COPY, Descriptor, Edited
from dinov2_jax.curation.edits import EDITS_19
from dinov2_jax.curation.hashes import cross_pairs
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import Stage, load_array, save_array
from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.errors import UserError
from dinov2_jax.features.search import Bank
from dinov2_jax.run.files import replacing, write_json

_POOL_ROWS = 50_000  # descriptors of the pool that the whitening is fitted to, at most
_NEIGHBOURS = 50
# Fewer pictures in the test half cannot tell 1 % from 0: the paper's kind of threshold is taken.
_LEAST = 50
NO_PAIRS = 1.0  # as a threshold: descriptors are not compared
UNCALIBRATED = {"pool": 0.7, "references": 0.6}


def stage(descriptor: Descriptor) -> Stage:
    """The stage for a descriptor."""

    def settings(pool: Pool) -> Mapping[str, Any]:
        known = pool.config.curate.calibrate.to_dict()
        hash_bits = pool.config.curate.dedup.hash_bits
        return {**known, "seed": pool.config.seed, "hash_bits": hash_bits}

    return Stage("calibrate", ("pictures", "embed"), settings, functools.partial(_run, descriptor))


def _run(descriptor: Descriptor, pool: Pool, folder: Path) -> Mapping[str, int]:
    rows = load_array(pool.folder / "embed" / "rows.npy")
    features = load_array(pool.folder / "embed" / "features" / f"{COPY}.npy")
    calibrate, seed = pool.config.curate.calibrate, pool.config.seed
    chosen = pick(rows, calibrate.pictures, seed)
    originals, copies = _made_copies(descriptor, pool, chosen)
    is_fit = thresholds.fit_half(chosen, seed)
    fit, test = np.flatnonzero(is_fit), np.flatnonzero(~is_fit)
    if not len(fit) or not len(test):
        fit = test = np.arange(len(chosen))
    sample = np.searchsorted(rows, pick(rows, _POOL_ROWS, seed))
    known = whitening.fit(originals[fit], copies[fit], features[sample], calibrate.width)
    with replacing(folder / "whitening.npz") as new, open(new, "wb") as file:
        np.savez(file, **vars(known))
    whitened = whitening.apply(known, features).astype(np.float16)
    save_array(folder / f"{COPY}.npy", whitened)
    scores = _scores(known, originals[test], copies[test])
    mirrored = whitening.apply(known, copies[test][:, list(EDITS_19).index("flip")])
    best = _best_unrelated(pool, rows, whitened, chosen[test], mirrored)
    curve = thresholds.curve(scores, best, list(EDITS_19))
    write_json(folder / "curve.json", _as_json(curve))
    write_json(folder / "thresholds.json", _choose(pool, curve, len(test)))
    return {
        "rows": len(rows),
        "pictures": len(chosen),
        "fitted_on": len(fit),
        "tested_on": len(test),
    }


def _made_copies(
    descriptor: Descriptor, pool: Pool, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of some pictures [N, D] and of their copies [N, E, D]."""
    decoding = DecodeSpec(pool.config.data.max_pixels)
    made = Edited(pool.source, chosen, pool.config.seed, decoding)
    found = descriptor.describe(made, "copy")[COPY].reshape(len(chosen), 1 + len(EDITS_19), -1)
    known = np.isfinite(found).all(axis=(1, 2))
    if not known.all():
        name = pool.source.name(int(chosen[np.argmin(known)]))
        raise CurationError(f"{name} could be read before but not now; restore it or start anew")
    return found[:, 0], found[:, 1:]


def _scores(known: whitening.Whitening, originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Cosines of copies with their originals, [N, E]."""
    left = whitening.apply(known, originals)
    right = whitening.apply(known, copies.reshape(-1, copies.shape[-1]))
    return np.einsum("nd,ned->ne", left, right.reshape(*copies.shape[:2], -1))


def _best_unrelated(
    pool: Pool, rows: np.ndarray, whitened: np.ndarray, chosen: np.ndarray, mirrored: np.ndarray
) -> np.ndarray:
    """The best cosine of each mirrored picture with the pool, without the picture itself.

    A mirrored picture has no copies in the pool, but looks as much like unrelated ones as the
    picture does. So copies that are not known yet do not raise the threshold.
    """
    hashes = np.asarray(load_array(pool.folder / "pictures" / "hash.npy")[rows])
    places = np.searchsorted(rows, chosen)
    a, b, _ = cross_pairs(hashes[places], hashes, max(0, pool.config.curate.dedup.hash_bits))
    own = set(zip(a.tolist(), b.tolist(), strict=True))
    k = min(_NEIGHBOURS, len(rows))
    found = Bank(whitened, np.zeros(len(whitened), np.int32)).search(mirrored, k)
    best = np.full(len(chosen), -1.0)
    for query in range(len(chosen)):
        for score, row in zip(found.similarities[query], found.rows[query], strict=True):
            if (query, int(row)) not in own:
                best[query] = score
                break
    return best


def _as_json(curve: thresholds.Curve) -> list[dict[str, float]]:
    """A row a threshold: false_share, recall of all edits, and of each."""
    return [
        {"threshold": float(t), "false_share": float(linked), "recall": float(recall.mean())}
        | dict(zip(curve.names, map(float, recall), strict=True))
        for t, linked, recall in zip(curve.threshold, curve.linked, curve.recall, strict=True)
    ]


def _choose(pool: Pool, curve: thresholds.Curve, tested: int) -> dict[str, Any]:
    """The thresholds for pairs of the pool, and against references, where leaks cost more."""
    wanted = pool.config.curate.calibrate
    if tested < _LEAST:
        print(
            f"note: {tested} pictures are too few to calibrate on, so the thresholds are "
            f"{UNCALIBRATED['pool']} and {UNCALIBRATED['references']}",
            flush=True,
        )
        return UNCALIBRATED | {"calibrated": False}
    try:
        return {
            "pool": thresholds.choose(curve, wanted.false_share),
            "references": thresholds.choose(curve, wanted.reference_false_share),
            "calibrated": True,
        }
    except UserError as error:
        if pool.config.weights:
            raise
        print(
            f"note: pixels do not tell these pictures apart ({error}); only hashes are compared, "
            "and --config.weights=<what load takes> would find more",
            flush=True,
        )
        return {"pool": NO_PAIRS, "references": NO_PAIRS, "calibrated": False}


def read_whitening(folder: Path) -> whitening.Whitening:
    """What stage "calibrate" fitted."""
    with np.load(folder / "whitening.npz") as stored:
        return whitening.Whitening(**stored)
