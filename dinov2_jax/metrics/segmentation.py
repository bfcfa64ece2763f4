"""Segmentation metrics on numpy arrays: IoU, accuracy per class and over pixels, in percent.

Counts are summed over the whole set before anything is divided. Source: mmsegmentation 0.27.
"""

from typing import NamedTuple

import numpy as np

from dinov2_jax.errors import EvaluationError
from dinov2_jax.metrics.classification import mean_of_known

IGNORED = 255


class Areas(NamedTuple):
    """Pixels by class, int64 [K]; sums of several pictures add up with `+` on each field."""

    both: np.ndarray  # predicted and true
    predicted: np.ndarray
    true: np.ndarray


def reduce_zero(labels: np.ndarray) -> np.ndarray:
    """ADE20K's raw labels 1..150 -> 0..149; 0 and 255 become 255, which is ignored."""
    labels = np.asarray(labels, np.int64)
    return np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1).astype(np.uint8)


def count_areas(predicted: np.ndarray, true: np.ndarray, classes: int) -> Areas:
    """Counts the pixels of one picture, without ignored ones and values that are no class.

    Args:
      predicted, true: integers of the same shape.

    Raises:
      EvaluationError: the shapes differ.
    """
    if np.shape(predicted) != np.shape(true):
        raise EvaluationError(
            f"a prediction of shape {np.shape(predicted)} for labels of shape {np.shape(true)}; "
            "predict at the size of the labels"
        )
    known = np.asarray(true) != IGNORED
    predicted, true = np.asarray(predicted)[known], np.asarray(true)[known]
    return Areas(*(_count(x, classes) for x in (true[predicted == true], predicted, true)))


def _count(labels: np.ndarray, classes: int) -> np.ndarray:
    labels = labels.astype(np.int64)
    return np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)


def add_areas(parts: list[Areas]) -> Areas:
    """The sum over pictures."""
    return Areas(*(np.sum(x, axis=0) for x in zip(*parts, strict=True)))


def class_iou(areas: Areas) -> np.ndarray:
    """Intersection over union, [K]; nan for a class that is neither predicted nor true."""
    return _percent(areas.both, areas.predicted + areas.true - areas.both)


def class_accuracy(areas: Areas) -> np.ndarray:
    """Share of a class's pixels that are right, [K]; nan for a class that is never true."""
    return _percent(areas.both, areas.true)


def summary(areas: Areas) -> dict[str, float]:
    """{"miou", "macc"}: means over the classes that are not nan; "aacc": over all pixels."""
    overall = _percent(areas.both.sum(keepdims=True), areas.true.sum(keepdims=True))
    return {
        "miou": mean_of_known(class_iou(areas)),
        "aacc": float(overall[0]),
        "macc": mean_of_known(class_accuracy(areas)),
    }


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)
