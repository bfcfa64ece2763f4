"""Region J and boundary F of tracked objects (DAVIS 2017, Pont-Tuset et al.), on numpy arrays."""

import math
from typing import NamedTuple

import numpy as np

_BOUND = 0.008  # of the diagonal: how far apart two boundaries may be


class Summary(NamedTuple):
    """Mean over frames, share of frames above 0.5, and loss from the first quarter to the last."""

    mean: float
    recall: float
    decay: float


def region_similarity(predicted: np.ndarray, true: np.ndarray) -> float:
    """J: intersection over union of two masks, bool [H, W]; 1 if both are empty."""
    predicted, true = np.asarray(predicted, bool), np.asarray(true, bool)
    union = (predicted | true).sum()
    return float((predicted & true).sum() / union) if union else 1.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one at the right, below, or right below: bool [H, W]."""
    mask = np.asarray(mask, bool)
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask != right) | (mask != below) | (mask != both)


def bound_px(height: int, width: int) -> int:
    """How many pixels apart two boundaries may be."""
    return math.ceil(_BOUND * math.hypot(height, width))


def boundary_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """F: harmonic mean of precision and recall of boundary pixels; 1 if neither has any."""
    found, wanted = boundary(predicted), boundary(true)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    radius = bound_px(*found.shape)
    precision = (found & dilate(wanted, radius)).sum() / found.sum()
    recall = (wanted & dilate(found, radius)).sum() / wanted.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within `radius` px of one of the mask, bool [H, W]."""
    height, width = mask.shape
    # Counts along rows, so that a run of the disk is a difference of two.
    counts = np.pad(np.cumsum(mask, axis=1), ((0, 0), (1, 0)))
    out, columns = np.zeros(mask.shape, bool), np.arange(width)
    for dy in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        half = math.isqrt(radius**2 - dy**2)
        near = (
            counts[:, np.minimum(columns + half + 1, width)]
            > counts[:, np.maximum(columns - half, 0)]
        )
        out[max(dy, 0) : height + min(dy, 0)] |= near[max(-dy, 0) : height - max(dy, 0)]
    return out


def summarise(frames: np.ndarray) -> Summary:
    """Summary of one object's values, one a frame, without the first and the last frame."""
    frames = np.asarray(frames, np.float64)
    edges = np.round(np.linspace(1, len(frames), 5) + 1e-10).astype(int) - 1
    first, last = frames[: edges[1] + 1], frames[edges[3] : edges[4] + 1]
    return Summary(
        float(np.nanmean(frames)),
        float(np.nanmean(frames > 0.5)),
        float(np.nanmean(first) - np.nanmean(last)),
    )
