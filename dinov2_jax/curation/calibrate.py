"""Stage "calibrate": whitening and thresholds, from copies that are made of the user's pictures.

whitening.npz     mean [D], matrix [D, width]
copy.npy          float16 [m, width], all whitened descriptors, of length 1
thresholds.json   pool, references, hash_bits of both, how they were found
curve.json        recall by edit and the share of falsely linked pictures, by threshold
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.curation import evidence, thresholds, whitening
from dinov2_jax.curation.balance import pick
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.descriptor import COPY, THUMBNAIL, Descriptor, Edited
from dinov2_jax.curation.edits import EDITS_14, EDITS_19
from dinov2_jax.curation.pictures import read_basis
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import Stage, load_array, save_array
from dinov2_jax.curation.unrelated import HeldOut
from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.errors import UserError
from dinov2_jax.run.files import replacing, write_json

_POOL_ROWS = 50_000  # descriptors of the pool that the whitening is fitted to, at most
_FITTED = len(EDITS_14)  # the first of EDITS_19; small crops and turns would blur the whitening
_OF_PICTURES = ("thumbnail", "hash")
# Fewer pictures in the test half cannot tell 1 % from 0: the paper's kind of threshold is taken.
_LEAST = 50
NO_PAIRS = 1.0  # as a threshold: descriptors are not compared
UNCALIBRATED = {"pool": 0.7, "references": 0.6}


def stage(descriptor: Descriptor) -> Stage:
    """The stage for a descriptor."""

    def settings(pool: Pool) -> Mapping[str, Any]:
        known = pool.config.curate.calibrate.to_dict()
        curate = pool.config.curate
        bits = {name: curate[name].hash_bits for name in ("dedup", "exclude")}
        return {**known, "seed": pool.config.seed, "hash_bits": bits}

    return Stage("calibrate", ("pictures", "embed"), settings, functools.partial(_run, descriptor))


def _run(descriptor: Descriptor, pool: Pool, folder: Path) -> Mapping[str, int]:
    rows = np.asarray(load_array(pool.folder / "embed" / "rows.npy"))
    features = load_array(pool.folder / "embed" / "features" / f"{COPY}.npy")
    calibrate, seed = pool.config.curate.calibrate, pool.config.seed
    chosen = pick(rows, calibrate.pictures, seed)
    made = _make_copies(descriptor, pool, chosen)
    is_fit = thresholds.fit_half(chosen, seed)
    fit, test = np.flatnonzero(is_fit), np.flatnonzero(~is_fit)
    if not len(fit) or not len(test):
        fit = test = np.arange(len(chosen))
    sample = np.searchsorted(rows, pick(rows, _POOL_ROWS, seed))
    described = made.features
    known = whitening.fit(
        described[fit, 0], described[fit, 1 : 1 + _FITTED], features[sample], calibrate.width
    )
    with replacing(folder / "whitening.npz") as new, open(new, "wb") as file:
        np.savez(file, **vars(known))
    whitened = whitening.apply(known, features).astype(np.float16)
    save_array(folder / f"{COPY}.npy", whitened)
    tested = _tested(pool, known, whitened, np.searchsorted(rows, chosen[test]), described[test])
    scores, best = _scores(known, tested, made, test), _best_unrelated(tested, made)
    curve = thresholds.curve(scores, best, list(EDITS_19))
    write_json(folder / "curve.json", _as_json(curve))
    write_json(folder / "thresholds.json", _choose(pool, curve, tested, made.thumbs is not None))
    return {
        "rows": len(rows),
        "pictures": len(chosen),
        "fitted_on": len(fit),
        "tested_on": len(test),
    }


class _Made(NamedTuple):
    """Descriptors [N, 1 + E, D] of pictures and their copies, and their thumbnails or None."""

    features: np.ndarray
    thumbs: np.ndarray | None


def _make_copies(descriptor: Descriptor, pool: Pool, chosen: np.ndarray) -> _Made:
    decoding = DecodeSpec(pool.config.data.max_pixels)
    edited = Edited(pool.source, chosen, pool.config.seed, decoding)
    found = descriptor.describe(edited, "copy")
    shape = len(chosen), 1 + len(EDITS_19)
    features = found[COPY].reshape(*shape, -1)
    known = np.isfinite(features).all(axis=(1, 2))
    if not known.all():
        name = pool.source.name(int(chosen[np.argmin(known)]))
        raise CurationError(f"{name} could be read before but not now; restore it or start anew")
    thumbs = found.get(THUMBNAIL)
    return _Made(features, None if thumbs is None else thumbs.reshape(*shape, *thumbs.shape[1:]))


def _tested(
    pool: Pool,
    known: whitening.Whitening,
    whitened: np.ndarray,
    places: np.ndarray,
    described: np.ndarray,
) -> HeldOut:
    pictures = pool.folder / "pictures"
    rows = np.asarray(load_array(pool.folder / "embed" / "rows.npy"))
    mirrored = whitening.apply(known, described[:, 1 + list(EDITS_19).index("flip")])
    thumbs, hashes = (np.asarray(load_array(pictures / f"{n}.npy")[rows]) for n in _OF_PICTURES)
    return HeldOut(places, mirrored, whitened, thumbs, read_basis(pictures), hashes)


def _scores(
    known: whitening.Whitening, tested: HeldOut, made: _Made, test: np.ndarray
) -> np.ndarray:
    """Cosines of copies with their originals, or their evidence where there are thumbnails."""
    described = made.features[test]
    left = whitening.apply(known, described[:, 0])
    right = whitening.apply(known, described[:, 1:].reshape(-1, described.shape[-1]))
    cosines = np.einsum("nd,ned->ne", left, right.reshape(len(test), len(EDITS_19), -1))
    if made.thumbs is None:
        return cosines
    whitened, own = tested.whitened, tested.thumbs[tested.places]
    level = evidence.levels(known, whitened, own, tested.places)
    copies = made.thumbs[test, 1:]
    found = evidence.scores(
        np.repeat(own, len(EDITS_19), axis=0),
        copies.reshape(-1, *own.shape[1:]),
        cosines.ravel(),
        np.repeat(level, len(EDITS_19)),
    )
    return found.reshape(cosines.shape)


def _best_unrelated(tested: HeldOut, made: _Made) -> np.ndarray:
    return tested.best_cosine() if made.thumbs is None else tested.best_score()


def _as_json(curve: thresholds.Curve) -> list[dict[str, float]]:
    """A row a threshold: false_share, recall of all edits, and of each."""
    return [
        {"threshold": float(t), "false_share": float(linked), "recall": float(recall.mean())}
        | dict(zip(curve.names, map(float, recall), strict=True))
        for t, linked, recall in zip(curve.threshold, curve.linked, curve.recall, strict=True)
    ]


def _choose(pool: Pool, curve: thresholds.Curve, tested: HeldOut, aligned: bool) -> dict[str, Any]:
    """Thresholds and bits for pairs of the pool, and against references, where leaks cost more."""
    shares = pool.config.curate.calibrate
    wanted = {
        "pool": (shares.false_share, pool.config.curate.dedup.hash_bits),
        "references": (shares.reference_false_share, pool.config.curate.exclude.hash_bits),
    }
    if len(tested.places) < _LEAST:
        print(
            f"note: {len(tested.places)} pictures are too few to calibrate on, so the thresholds "
            f"are {UNCALIBRATED['pool']} and {UNCALIBRATED['references']}",
            flush=True,
        )
        bits = {name: most for name, (_, most) in wanted.items()}
        return UNCALIBRATED | {"hash_bits": bits, "calibrated": False, "aligned": False}
    bits = {name: tested.hash_bits(most, share) for name, (share, most) in wanted.items()}
    found = {"hash_bits": bits, "calibrated": True, "aligned": aligned}
    try:
        return {n: thresholds.choose(curve, share) for n, (share, _) in wanted.items()} | found
    except UserError as error:
        if pool.config.weights:
            raise
        print(
            f"note: pixels do not tell these pictures apart ({error}); only hashes are compared, "
            "and --config.weights=<what load takes> would find more",
            flush=True,
        )
        return {name: NO_PAIRS for name in wanted} | found | {"aligned": False}


def read_whitening(folder: Path) -> whitening.Whitening:
    """What stage "calibrate" fitted."""
    with np.load(folder / "whitening.npz") as stored:
        return whitening.Whitening(**stored)
