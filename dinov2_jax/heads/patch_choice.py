"""Segmentation by frozen patches: k, distance and C from val, then a fit of train and val."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax.heads.patch_segmentation import (
    IGNORED,
    PatchBank,
    PatchClassifier,
    Scale,
    fit_classifiers,
    modes,
    scale_of,
)
from dinov2_jax.metrics.segmentation import Areas, add_areas, count_areas, summary
from dinov2_jax.run.progress import Progress

_QUERIES = 8192  # patches between two updates of the progress


class Learned(NamedTuple):
    """Patches of train, and after them those of val.

    Attributes:
      features: fp32 [n, D], not standardised.
      layouts: uint8 [n, p * p], classes of pixels.
      val_from: the first patch of val.
    """

    features: np.ndarray
    layouts: np.ndarray
    val_from: int

    def labelled(self, with_val: bool) -> np.ndarray:
        """Rows of patches whose most frequent value is a class; the others teach nothing."""
        layouts = self.layouts if with_val else self.layouts[: self.val_from]
        return np.flatnonzero(modes(layouts) != IGNORED)


class Trial(NamedTuple):
    """One choice, and its mean IoU on val in percent.

    Attributes:
      method: "cosine" or "l2" of k-NN, or "logistic".
      at: k, or C.
    """

    method: str
    at: float
    miou: float


class Predictor(NamedTuple):
    """What was fitted."""

    scale: Scale
    model: PatchBank | PatchClassifier
    k: int = 0

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Features [m, D] as the backbone gives them -> classes uint8 [m, p * p]."""
        scaled = self.scale(features)
        if isinstance(self.model, PatchBank):
            return self.model.predict(scaled, (self.k,))[0]
        return self.model.predict(scaled)


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the greatest mean IoU; of equal ones the first."""
    return max(trials, key=lambda trial: trial.miou)


def try_knn(
    learned: Learned, metrics: Sequence[str], ks: Sequence[int], classes: int, show: bool = False
) -> list[Trial]:
    """Judges every distance and every k on val.

    Args:
      metrics: "cosine", "l2".
      ks: numbers of neighbours.
      classes: how many there are.
      show: draws a bar with the time that is left.

    Raises:
      EvaluationError: train has no labelled patch.
    """
    scale, features, layouts = _scaled(learned, with_val=False)
    queries = len(learned.features) - learned.val_from
    progress = Progress(queries * len(metrics), unit="patch") if show else None
    trials: list[Trial] = []
    for number, metric in enumerate(metrics):
        bank = PatchBank(features, layouts, metric)
        areas: dict[int, list[Areas]] = {k: [] for k in ks}
        for done, block, truth in _val_blocks(learned):
            for k, found in zip(ks, bank.predict(scale(block), ks), strict=True):
                areas[k].append(count_areas(found, truth, classes))
            if progress:
                progress.update(number * queries + done)
        trials += [Trial(metric, k, _miou(parts)) for k, parts in areas.items()]
    if progress:
        progress.close()
    return trials


def fit_knn(learned: Learned, chosen: Trial) -> Predictor:
    """A bank of train and val."""
    scale, features, layouts = _scaled(learned, with_val=True)
    return Predictor(scale, PatchBank(features, layouts, chosen.method), int(chosen.at))


def try_logistic(
    learned: Learned,
    values: Sequence[float],
    classes: int,
    *,
    most: int,
    seed: int = 0,
    show: bool = False,
) -> tuple[list[Trial], PatchClassifier]:
    """Fits every C to train and judges it on val.

    Args:
      values: C, inverse strengths of the penalty.
      classes: how many there are.
      most: patches that are fitted; of more, some are drawn at random.
      seed: of the draw.
      show: draws a bar with the time that is left.

    Returns:
      All trials, by C, and the classifier of the best one.

    Raises:
      EvaluationError: patches of a single class, or no labelled ones.
    """
    scale, features, layouts = _scaled(learned, False, most, seed)
    progress = Progress(len(values), unit="C") if show else None
    trials: list[Trial] = []
    kept: list[PatchClassifier] = []
    for classifier in fit_classifiers(features, layouts, classes, values):
        parts = [
            count_areas(classifier.predict(scale(block)), truth, classes)
            for _, block, truth in _val_blocks(learned)
        ]
        trials.append(Trial("logistic", classifier.model.C, _miou(parts)))
        if best(trials) is trials[-1]:
            kept = [classifier]
        if progress:
            progress.update(len(trials), C=trials[-1].at, miou=trials[-1].miou)
    if progress:
        progress.close()
    return trials, kept[0]


def fit_logistic(
    learned: Learned, chosen: PatchClassifier, classes: int, *, most: int, seed: int = 0
) -> Predictor:
    """The same C for train and val; arguments as in `try_logistic`."""
    scale, features, layouts = _scaled(learned, True, most, seed)
    found = fit_classifiers(features, layouts, classes, [chosen.model.C], init=chosen)
    return Predictor(scale, next(found))


def _scaled(
    learned: Learned, with_val: bool, most: int = 0, seed: int = 0
) -> tuple[Scale, np.ndarray, np.ndarray]:
    """Scale, standardised features and layouts of labelled patches, or of `most` of them."""
    rows = learned.labelled(with_val)
    if most and len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    features = learned.features[rows]
    scale = scale_of(features)
    features -= scale.mean  # in place: there may be millions
    features /= scale.deviation
    return scale, features, learned.layouts[rows]


def _val_blocks(learned: Learned) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(patches so far, features, layouts) of val."""
    first, count = learned.val_from, len(learned.features)
    for start in range(first, count, _QUERIES):
        rows = slice(start, start + _QUERIES)
        yield min(start + _QUERIES, count) - first, learned.features[rows], learned.layouts[rows]


def _miou(parts: list[Areas]) -> float:
    return summary(add_areas(parts))["miou"]
