"""Copy whitening: features turned so that what an edit changes counts little, in closed form.

A picture's copies differ from it along some directions much more than along others: brightness,
shift, blur. The covariance of (copy - original) says which. After division by its root all edits
weigh the same, and the pool's main directions in that space tell pictures apart. It is linear
discriminant analysis with one class a picture, from copies that we make ourselves.
"""

from dataclasses import dataclass

import numpy as np

from dinov2_jax.errors import UserError

_BLOCK = 1 << 14  # rows
# Share of an even spectrum in what copies change, at least: no direction counts more than about
# 1 / sqrt(this) times the average one, however still it was in the copies seen.
_LEAST_SHRINKAGE = 1e-3


@dataclass(frozen=True)
class Whitening:
    """mean [D] and matrix [D, width], float32: `apply` takes (features - mean) @ matrix."""

    mean: np.ndarray
    matrix: np.ndarray


def fit(originals: np.ndarray, copies: np.ndarray, pool: np.ndarray, width: int = 128) -> Whitening:
    """Features of originals [N, D], of E copies of each [N, E, D], and of a pool [M, D].

    The result has min(width, D) dimensions. What copies change is shrunk towards an even spectrum
    by Ledoit and Wolf's (2004) weight, so N E may be less than D and dimensions may be constant.
    Raises UserError if a value is not finite, or no copy differs from its original.
    """
    originals, copies, pool = (np.asarray(x, np.float64) for x in (originals, copies, pool))
    if not all(np.isfinite(x).all() for x in (originals, copies, pool)):
        raise UserError(
            "features to whiten hold NaN or infinite values; leave unreadable pictures out of the "
            "calibration"
        )
    changes = (copies - originals[:, None]).reshape(-1, originals.shape[1])
    narrow = _inverse_root(_shrunk(changes))
    mean = pool.mean(0)
    spread = narrow @ _covariance(pool - mean) @ narrow
    _, vectors = np.linalg.eigh(spread)
    main = vectors[:, ::-1][:, :width]
    largest = np.abs(main).argmax(0)
    matrix = narrow @ (main * np.sign(main[largest, np.arange(main.shape[1])]))
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))


def apply(whitening: Whitening, features: np.ndarray) -> np.ndarray:
    """Features [N, D] -> float32 [N, width] of length 1; the mean itself becomes zeros."""
    turned = np.empty((len(features), whitening.matrix.shape[1]), np.float32)
    for start in range(0, len(features), _BLOCK):
        rows = np.asarray(features[start : start + _BLOCK], np.float32) - whitening.mean
        turned[start : start + _BLOCK] = rows @ whitening.matrix
    length = np.linalg.norm(turned, axis=1, keepdims=True)
    return np.divide(turned, length, out=np.zeros_like(turned), where=length > 0)


def _covariance(rows: np.ndarray) -> np.ndarray:
    return rows.T @ rows / max(len(rows), 1)


def _shrunk(changes: np.ndarray) -> np.ndarray:
    """Second moment of changes [K, D] about zero, mixed with an even spectrum of the same trace."""
    seen = _covariance(changes)
    dimensions = len(seen)
    level = np.trace(seen) / dimensions
    if not level:
        raise UserError(
            "no copy differs from its original, so nothing can be whitened; the pictures of the "
            "calibration are blank, or the model gives the same for all"
        )
    count = len(changes)
    distance = (seen**2).sum() - dimensions * level**2  # to the even spectrum, squared
    error = ((changes**2).sum(1) ** 2).sum() / count**2 - (seen**2).sum() / count
    weight = min(1.0, error / distance) if distance > 0 else 1.0
    weight = max(weight, _LEAST_SHRINKAGE)
    return (1 - weight) * seen + weight * level * np.eye(dimensions)


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors / np.sqrt(values) @ vectors.T
