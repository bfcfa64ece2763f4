"""Classes of pixels from frozen patches: k-NN by pixel position, and logistic regression.

Samples are patches; the label of a patch is its layout, the classes of its p x p pixels. Source:
the protocol of CAPI (Darcet et al. 2025).
"""

# DINOv2: CAPI lets ignored pixels of neighbours vote, and then predicts "ignored". Here they do not
# vote; where all neighbours are ignored, the most frequent class of the nearest patch is taken.

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.search import Bank, unit
from dinov2_jax.heads.logistic.fit import Fitter, Model

IGNORED = 255
METRICS = ("cosine", "l2")
_ROWS_AT_ONCE = 4096


# -------------------------------------------------------------------------------------- layouts
def layouts_of(targets: np.ndarray, patch_size: int) -> np.ndarray:
    """Classes of pictures [B, H, W] -> of their patches in row-major order [B * P, p * p]."""
    count, height, width = targets.shape
    rows, cols = height // patch_size, width // patch_size
    cells = targets.reshape(count, rows, patch_size, cols, patch_size).swapaxes(2, 3)
    return cells.reshape(count * rows * cols, patch_size**2)


def pictures_of(layouts: np.ndarray, size: tuple[int, int], patch_size: int) -> np.ndarray:
    """The inverse of `layouts_of`: [B * P, p * p] -> [B, H, W]."""
    rows, cols = (side // patch_size for side in size)
    cells = layouts.reshape(-1, rows, cols, patch_size, patch_size).swapaxes(2, 3)
    return cells.reshape(-1, *size)


def modes(layouts: np.ndarray) -> np.ndarray:
    """The most frequent value of each layout, uint8 [n]; of equally frequent ones the least."""
    found = np.empty(len(layouts), np.uint8)
    for rows in _blocks(len(layouts)):
        block = layouts[rows]
        cells = np.arange(len(block))[:, None] * 256 + block
        counts = np.bincount(cells.ravel(), minlength=256 * len(block))
        found[rows] = counts.reshape(-1, 256).argmax(axis=1)
    return found


def _blocks(count: int) -> Iterator[slice]:
    return (slice(i, i + _ROWS_AT_ONCE) for i in range(0, count, _ROWS_AT_ONCE))


class Scale(NamedTuple):
    """Standardises features by mean and deviation of those that are learned from, fp32 [D]."""

    mean: np.ndarray
    deviation: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[n, D] -> fp32 [n, D]."""
        scaled = np.subtract(features, self.mean, dtype=np.float32)
        scaled /= self.deviation
        return scaled


def scale_of(features: np.ndarray) -> Scale:
    """The scale of features [n, D]; a feature that never changes keeps deviation 1."""
    mean = np.mean(features, axis=0, dtype=np.float64)
    squares = sum(
        np.square(features[rows] - mean, dtype=np.float64).sum(axis=0)
        for rows in _blocks(len(features))
    )
    deviation = np.sqrt(squares / len(features))
    deviation[deviation < 1e-10 * np.maximum(np.abs(mean), 1)] = 1
    return Scale(mean.astype(np.float32), deviation.astype(np.float32))


# ----------------------------------------------------------------------------------------- k-NN
class PatchBank:
    """Labelled patches, ready for searches; a mesh that is set shares them (see `Bank`).

    Args:
      features: [n, D], standardised.
      layouts: uint8 [n, p * p], `IGNORED` where a pixel has no class.
      metric: one of METRICS.

    Raises:
      EvaluationError: there are no patches, or the most frequent value of one is `IGNORED`.
    """

    def __init__(self, features: np.ndarray, layouts: np.ndarray, metric: str) -> None:
        self._layouts, self._modes, self._metric = layouts, modes(layouts), metric
        if (self._modes == IGNORED).any():
            raise EvaluationError("patches that are mostly ignored have no label; leave them out")
        rows = unit(features) if metric == "cosine" else _with_norms(features)
        self._bank = Bank(rows, np.arange(len(features)))

    def predict(self, features: np.ndarray, ks: Sequence[int]) -> np.ndarray:
        """The most frequent class among the k nearest patches, for each position of a pixel.

        Neighbours vote with equal weights; of equally frequent classes the least wins.

        Args:
          features: [m, D], standardised.
          ks: numbers of neighbours; more than the bank has means all of it.

        Returns:
          uint8 [len(ks), m, p * p].
        """
        ks = tuple(min(k, self._bank.size) for k in ks)
        queries = unit(features) if self._metric == "cosine" else _with_ones(features)
        found = []
        for block in self._bank.search_blocks(queries, max(ks)):
            near, own = self._layouts[block.rows], self._modes[block.rows[:, 0]]
            found.append(np.asarray(_vote(near, own, ks)))
        return np.concatenate(found, axis=1)


def _with_norms(features: np.ndarray) -> np.ndarray:
    """Rows whose product with `_with_ones` falls as the distance grows: q x - |x|^2 / 2."""
    half = np.square(features).sum(axis=1, keepdims=True) / 2
    return np.concatenate([features, -half], axis=1)


def _with_ones(features: np.ndarray) -> np.ndarray:
    return np.pad(features, [(0, 0), (0, 1)], constant_values=1)


@functools.partial(jax.jit, static_argnames="ks")
def _vote(near: Array, own: Array, ks: tuple[int, ...]) -> Array:
    """Classes uint8 [len(ks), m, q] from layouts [m, max k, q], nearest first.

    `own` [m] is taken where no neighbour has a class.
    """
    whole = jnp.moveaxis(near, 1, 0).astype(jnp.int32)

    def of_first(k: int) -> Array:
        def better(best: Array, one: Array) -> tuple[Array, None]:
            votes = (whole[:k] == one).sum(axis=0)
            # Ordered by votes, then by the class, the least first.
            score = jnp.where(one == IGNORED, 0, votes * 256 + IGNORED - one)
            return jnp.maximum(best, score), None

        best = jax.lax.scan(better, jnp.zeros(whole.shape[1:], jnp.int32), whole[:k])[0]
        return jnp.where(best > 0, IGNORED - best % 256, own[:, None]).astype(jnp.uint8)

    return jnp.stack([of_first(k) for k in ks])


# -------------------------------------------------------------------------- logistic regression
class PatchClassifier(NamedTuple):
    """Logistic regression on patches; every pixel of a patch has its class."""

    model: Model
    pixels: int  # of a patch

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Standardised features [m, D] -> classes uint8 [m, p * p]."""
        found = [
            self.model.scores(features[rows]).argmax(axis=1) for rows in _blocks(len(features))
        ]
        return np.repeat(np.concatenate(found).astype(np.uint8)[:, None], self.pixels, axis=1)


def fit_classifiers(
    features: np.ndarray,
    layouts: np.ndarray,
    classes: int,
    values: Sequence[float],
    init: PatchClassifier | None = None,
) -> Iterator[PatchClassifier]:
    """A classifier for each C, ascending; the label of a patch is its most frequent class.

    Args:
      features: [n, D], standardised.
      layouts: uint8 [n, p * p].
      classes: how many there are.
      values: C, inverse strengths of the penalty.
      init: where the first one begins.

    Raises:
      EvaluationError: what `Fitter` refuses, such as a single class.
    """
    fitter, pixels = Fitter(features, modes(layouts).astype(np.int64), classes), layouts.shape[1]
    start = init.model if init else None
    for model in fitter.path(sorted(values), init=start):
        yield PatchClassifier(model, pixels)
