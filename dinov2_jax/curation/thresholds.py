"""Where copies end and unrelated pictures begin: measured on the pool, from copies that we make."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinov2_jax.curation.balance import keys
from dinov2_jax.curation.edits import EDITS_14, PLAIN
from dinov2_jax.errors import UserError

# Scores at which a curve is taken; an edge is a score of at least the threshold.
GRID = np.arange(201) / 200
# A descriptor that loses more of the plainest copies is of no use.
LEAST_PLAIN_RECALL = 0.95


@dataclass(frozen=True)
class Curve:
    """threshold [T] ascending, names of E edits, recall [T, E], linked [T].

    recall: the share of copies by an edit that score at least the threshold with their original.
    linked: the share of pictures with at least one edge to an unrelated one.
    """

    threshold: np.ndarray
    names: tuple[str, ...]
    recall: np.ndarray
    linked: np.ndarray


def curve(
    copy_scores: np.ndarray,
    best_unrelated: np.ndarray,
    names: Sequence[str] = tuple(EDITS_14),
    threshold: np.ndarray = GRID,
) -> Curve:
    """Recall and false edges at each threshold, from pictures that nothing was fitted on.

    copy_scores [N, E] are those of each picture's copies with it, best_unrelated [N'] the highest
    score of each picture with any unrelated one of the whole pool: the best of many grows with
    their number, so a sample of the pool says too little. Raises UserError for NaN, or no rows.
    """
    copy_scores, best_unrelated = np.asarray(copy_scores), np.asarray(best_unrelated)
    if not copy_scores.size or not best_unrelated.size:
        raise UserError(
            "there is no picture to take thresholds from; calibrate on more readable pictures that "
            "are not blank"
        )
    if not (np.isfinite(copy_scores).all() and np.isfinite(best_unrelated).all()):
        raise UserError(
            "scores to calibrate on hold NaN or infinite values; leave unreadable pictures out"
        )
    recall = [_share_from(scores, threshold) for scores in copy_scores.T]
    linked = _share_from(best_unrelated, threshold)
    return Curve(threshold, tuple(names), np.stack(recall, 1), linked)


def _share_from(scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The share of scores that are at least each threshold."""
    below = np.searchsorted(np.sort(scores), threshold, side="left")
    return (len(scores) - below) / len(scores)


def choose(found: Curve, false_share: float, plain: Sequence[str] = PLAIN) -> float:
    """The lowest threshold at which at most `false_share` of the pictures get a false edge.

    Raises UserError if there is none, or if fewer than 95 % of the copies by the `plain` edits
    (JPEG, a smaller size) are found there.
    """
    allowed = np.flatnonzero(found.linked <= false_share)
    if not len(allowed):
        raise UserError(
            f"{found.linked[-1]:.1%} of the pictures score {found.threshold[-1]:g} or more with an "
            f"unrelated one and {false_share:.1%} are allowed; use other features, or link only "
            "pictures of equal pixels"
        )
    place = int(allowed[0])
    columns = [found.names.index(name) for name in plain]
    recall = float(found.recall[place, columns].mean())
    if recall < LEAST_PLAIN_RECALL:
        raise UserError(
            f"at the threshold {found.threshold[place]:g}, where {found.linked[place]:.1%} of the "
            f"pictures get a false edge, {recall:.1%} of the copies by {', '.join(plain)} are "
            f"found and {LEAST_PLAIN_RECALL:.0%} are needed; use other features, or allow more "
            f"than {false_share:.1%} false"
        )
    return float(found.threshold[place])


def fit_half(rows: np.ndarray, seed: int) -> np.ndarray:
    """bool [N]: the rows to fit on; the others are for the curve.

    It takes the lowest bit of a row's key: `balance.pick`, which may have chosen the rows by the
    same seed, takes the smallest keys, and so has settled the highest bits.
    """
    return keys(rows, seed) % np.uint64(2) == 0
