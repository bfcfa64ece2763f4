"""Classification metrics on numpy arrays: top-k, mean per class, ReaL, 11-point mAP and mCE.

All results are in percent. Scores [n, K] rank the K classes, larger is better. Equal scores are
ranked by class number, so that results do not depend on a sorting routine.
"""

from collections.abc import Mapping

import numpy as np

from dinov2_jax.errors import EvaluationError

# Errors of AlexNet in percent, means over the five severities (Hendrycks & Dietterich 2019,
# https://github.com/hendrycks/robustness). In the order of the paper's tables.
ALEXNET_ERRORS = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640,
    "defocus_blur": 81.9880, "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360,
    "snow": 86.6816, "frost": 82.6572, "fog": 81.9324, "brightness": 56.4592,
    "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip

# Scores that are compared at once.
_BLOCK = 2**23


# ---------------------------------------------------------------------------------- one label
def top_accuracy(scores: np.ndarray, labels: np.ndarray, top: int) -> float:
    """Percentage of rows [n, K] whose label [n] is among the `top` best classes.

    A label without a score (-1, or K and more) is never among them; nor is a score of nan.

    Raises:
      EvaluationError: there are no rows, or the number of labels differs.
    """
    return float(100 * np.mean(label_ranks(scores, labels) < top))


def class_accuracies(
    scores: np.ndarray, labels: np.ndarray, top: int = 1, *, classes: int | None = None
) -> np.ndarray:
    """`top_accuracy` of the rows of each class, [classes] (default K); nan for one without rows.

    Rows with labels below 0 are left out.

    Raises:
      EvaluationError: as `top_accuracy`, and for a label of `classes` or more.
    """
    classes = scores.shape[1] if classes is None else classes
    return shares_by_class(label_ranks(scores, labels) < top, labels, classes)


def shares_by_class(hits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Percentage of `hits`, bool [n], among the rows of each class; nan for one without rows.

    Rows with labels [n] below 0 are left out.

    Raises:
      EvaluationError: for a label of `classes` or more.
    """
    labels = np.asarray(labels)
    if labels.max() >= classes:
        raise EvaluationError(
            f"label {labels.max()} does not fit {classes} classes; give the number of classes of "
            "training and test set together"
        )
    known = labels >= 0
    counts = np.bincount(labels[known], minlength=classes)
    right = np.bincount(labels[known], weights=hits[known], minlength=classes)
    return np.where(counts > 0, 100 * right / np.maximum(counts, 1), np.nan)


def mean_per_class_accuracy(
    scores: np.ndarray, labels: np.ndarray, top: int = 1, *, classes: int | None = None
) -> float:
    """Mean of `class_accuracies` over the classes that have rows; nan if none has.

    Raises:
      EvaluationError: as `class_accuracies`.
    """
    # DINOv2: torchmetrics' macro top-1 also counts, as 0, a class that is predicted but has no
    # rows; its macro top-5, scikit-learn and this do not.
    return mean_of_known(class_accuracies(scores, labels, top, classes=classes))


def mean_of_known(values: np.ndarray) -> float:
    """The mean of the values that are not nan; nan if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def real_accuracy(scores: np.ndarray, labels: np.ndarray, top: int = 1) -> float:
    """ReaL accuracy: percentage of images one of whose valid labels is among the `top` best.

    `labels` [n, m] are the valid ones of each image, padded with -1; images without any are left
    out (Beyer et al. 2020).

    Raises:
      EvaluationError: no image has labels, or labels and scores have different numbers of rows.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or len(labels) != len(scores):
        raise EvaluationError(
            f"ReaL labels of shape {labels.shape} for {len(scores)} images; give one row an image, "
            "padded with -1"
        )
    labelled = (labels >= 0).any(axis=1)
    if not labelled.any():
        raise EvaluationError(
            "no image has a ReaL label; check that the label file fits the images"
        )
    scores, labels = scores[labelled], labels[labelled]
    best = np.min([label_ranks(scores, column) for column in labels.T], axis=0)
    return float(100 * np.mean(best < top))


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The number of classes ranked before each row's label, int64 [n]; 0 is the best.

    A label without a score (-1, or K and more) and one whose score is nan have a rank beyond all.

    Args:
      scores: [n, K].
      labels: [n].

    Raises:
      EvaluationError: there are no rows, or the number of labels differs.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(scores),) or not len(scores):
        raise EvaluationError(
            f"labels of shape {labels.shape} for {len(scores)} rows of scores; accuracy needs at "
            "least one row, and one label a row"
        )
    rows = max(1, _BLOCK // max(1, scores.shape[1]))
    parts = range(0, len(scores), rows)
    return np.concatenate([_rank(scores[i : i + rows], labels[i : i + rows]) for i in parts])


def _rank(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    classes = scores.shape[1]
    valid = (labels >= 0) & (labels < classes)
    place = np.where(valid, labels, 0)
    own = np.take_along_axis(scores, place[:, None], axis=1)
    earlier = (scores == own) & (np.arange(classes) < place[:, None])
    before = ((scores > own) | earlier).sum(axis=1)
    return np.where(valid & ~np.isnan(own[:, 0]), before, np.iinfo(before.dtype).max)


# -------------------------------------------------------------------------------- many labels
def eleven_point_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """11-point interpolated average precision of one class (VOC2007, Everingham et al. 2010).

    The mean over recalls 0, 0.1, ..., 1 of the greatest precision at that recall or beyond; nan
    without a positive. Equal scores are ranked by row.

    Args:
      scores [n]; labels [n]: 1 has the class, 0 does not, -1 (difficult, unknown) is left out.

    Raises:
      EvaluationError: the number of labels differs from that of the scores, or a label is none of
        -1, 0, 1.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape or not np.isin(labels, (-1, 0, 1)).all():
        raise EvaluationError(
            f"average precision needs one label of -1, 0 or 1 a score, but there are labels of "
            f"shape {labels.shape} from {labels.min(initial=0)} to {labels.max(initial=0)} for "
            f"scores of shape {scores.shape}"
        )
    scores, positive = scores[labels >= 0], labels[labels >= 0] == 1
    if not positive.any():
        return float("nan")
    hits = np.cumsum(positive[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    # Greatest precision from each rank on. Recall is compared in whole numbers, hits / positives
    # >= t / 10: in floating point 3 of 10 may miss recall 0.3.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(10 * hits, np.arange(11) * positive.sum())
    return float(100 * envelope[first].mean())


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """11-point mAP: the mean over the classes that have a positive, and each class's value [K].

    Scores are [n, K], labels [n, K] of -1, 0, 1. A class without positives is nan, and the mean if
    no class has any.

    Raises:
      EvaluationError: as `eleven_point_precision`.
    """
    if np.shape(scores) != np.shape(labels):
        raise EvaluationError(
            f"scores of shape {np.shape(scores)} and labels of shape {np.shape(labels)}; a "
            "multi-label set has one label of -1, 0 or 1 for every image and class"
        )
    each = np.array([eleven_point_precision(s, y) for s, y in zip(scores.T, labels.T, strict=True)])
    return mean_of_known(each), each


# -------------------------------------------------------------------------------- corruptions
def corruption_errors(errors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """ImageNet-C: mCE, the mean error and each corruption's error relative to AlexNet's.

    CE_c = sum over severities of the error / the same sum for AlexNet; mCE = their mean over the 15
    corruptions (Hendrycks & Dietterich 2019, equation 1).

    Args:
      errors: top-1 errors in percent of the corruptions of `ALEXNET_ERRORS`, [5] severities each.

    Returns:
      {"mCE", "mean error", and one name a corruption}, percent.

    Raises:
      EvaluationError: a corruption or severity is missing, or an unknown one is given.
    """
    lacking, other = set(ALEXNET_ERRORS) - set(errors), set(errors) - set(ALEXNET_ERRORS)
    if lacking or other:
        raise EvaluationError(
            f"mCE is over the 15 corruptions of ImageNet-C: missing {sorted(lacking)}, unknown "
            f"{sorted(other)}; the four extra ones of that set do not belong to it"
        )
    for name, values in errors.items():
        if np.shape(values) != (5,):
            raise EvaluationError(
                f"errors of {name} have shape {np.shape(values)}; give one a severity, 5 in all"
            )
    means = {name: float(np.mean(errors[name])) for name in ALEXNET_ERRORS}
    relative = {name: 100 * mean / ALEXNET_ERRORS[name] for name, mean in means.items()}
    mce, mean = (float(np.mean(list(values.values()))) for values in (relative, means))
    return {"mCE": mce, "mean error": mean} | relative
