"""Depth metrics on numpy arrays: nine values a picture, then means over pictures.

Source: Eigen et al. 2014 and the Monocular-Depth-Estimation-Toolbox. Depths are metres. There is no
scaling by the median.
"""

from collections.abc import Sequence

import numpy as np

from dinov2_jax.errors import EvaluationError

NAMES = ("a1", "a2", "a3", "abs_rel", "rmse", "log_10", "rmse_log", "silog", "sq_rel")
CROPS = ("none", "nyu_eigen", "kitti_eigen", "garg")
# Top, bottom, left and right as shares of the sides.
_SHARES = {
    "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def crop_mask(height: int, width: int, crop: str) -> np.ndarray:
    """Where a picture is judged, bool [H, W].

    Args:
      crop: one of CROPS; "nyu_eigen" has the places of a picture of 480 x 640.

    Raises:
      EvaluationError: an unknown crop.
    """
    if crop not in CROPS:
        raise EvaluationError(f"the crop {crop!r} is unknown; choose one of {', '.join(CROPS)}")
    mask = np.zeros((height, width), bool)
    box = (0, height, 0, width)
    if crop == "nyu_eigen":
        box = (45, 471, 41, 601)
    elif crop in _SHARES:
        sides = (height, height, width, width)
        box = tuple(int(s * n) for s, n in zip(_SHARES[crop], sides, strict=True))
    mask[box[0] : box[1], box[2] : box[3]] = True
    return mask


def valid_pixels(true: np.ndarray, low: float, high: float, crop: str = "none") -> np.ndarray:
    """Where the truth [H, W] lies between `low` and `high` metres, within the crop."""
    return (true > low) & (true < high) & crop_mask(*true.shape, crop)


def depth_metrics(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """The nine metrics of one picture, by NAMES; nan without a valid pixel.

    a1, a2, a3 are shares in 0..1, silog is 100 times a deviation, the rest is as its name says.

    Raises:
      EvaluationError: the shapes differ.
    """
    if np.shape(predicted) != np.shape(true):
        raise EvaluationError(
            f"a prediction of shape {np.shape(predicted)} for depths of shape {np.shape(true)}; "
            "predict at the size of the depths"
        )
    if not valid.any():
        return dict.fromkeys(NAMES, float("nan"))
    p, t = (np.asarray(x, np.float64)[valid] for x in (predicted, true))
    ratio, error, log = np.maximum(t / p, p / t), t - p, np.log(p) - np.log(t)
    shares = [np.mean(ratio < 1.25**power) for power in (1, 2, 3)]
    silog = 100 * np.sqrt(max(np.mean(log**2) - np.mean(log) ** 2, 0))
    values = (
        *shares,
        np.mean(np.abs(error) / t),
        np.sqrt(np.mean(error**2)),
        np.mean(np.abs(log)) / np.log(10),
        np.sqrt(np.mean(log**2)),
        silog,
        np.mean(error**2 / t),
    )
    return dict(zip(NAMES, map(float, values), strict=True))


def mean_metrics(pictures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over pictures; those without valid pixels are left out, nan if all are."""
    rows = np.array([[picture[name] for name in NAMES] for picture in pictures])
    known = rows[~np.isnan(rows).all(axis=1)]
    means = known.mean(axis=0) if len(known) else np.full(len(NAMES), np.nan)
    return dict(zip(NAMES, map(float, means), strict=True))
