"""Patch features as colours: the first three principal components as red, green and blue."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MIN_SIDE_PX = 64
SIDES = ("auto", "high", "low")
DARKEST = 45  # of 255: foreground patches never look like the black background


class PcaPictures(NamedTuple):
    """Colours and foreground of several pictures; a pixel stands for a patch.

    Attributes:
      colours: uint8 [h, w, 3] for each picture, by the PCA of all patches.
      foreground: bool [h, w] for each picture.
      foreground_colours: uint8 [h, w, 3] for each picture, by the PCA of the foreground; black
        elsewhere.
    """

    colours: list[np.ndarray]
    foreground: list[np.ndarray]
    foreground_colours: list[np.ndarray]


def pca_pictures(
    features: Sequence[np.ndarray], threshold: float = 0.0, side: str = "auto"
) -> PcaPictures:
    """Colours patches of several pictures by PCA, with and without their background.

    As in the paper's figure 1 (section 7.6): a threshold on the first component of a joint PCA
    separates foreground from background. A second joint PCA, of the foreground patches alone, gives
    red, green and blue. Equal colours mean similar features, across pictures too.

    Args:
      features: [h, w, D] of each picture; grids may differ. Non-finite values count as 0.
      threshold, side: see `foreground_masks`.

    Raises:
      ValueError: no pictures, not of one width D, or an unknown side.
    """
    masks = foreground_masks(features, threshold, side)
    rows, shapes = _rows(features), [f.shape[:2] for f in features]
    inside = np.concatenate([mask.ravel() for mask in masks])
    colours = np.zeros((len(rows), 3), np.uint8)
    if inside.any():
        colours[inside] = _colours(rows[inside], DARKEST)
    everything = _unflatten(_colours(rows), shapes)
    return PcaPictures(everything, masks, _unflatten(colours, shapes))


def foreground_masks(
    features: Sequence[np.ndarray], threshold: float = 0.0, side: str = "auto"
) -> list[np.ndarray]:
    """Separates foreground from background: features [h, w, D] -> bool [h, w], for each picture.

    Args:
      features: see `pca_pictures`.
      threshold: in standard deviations of the first component of the joint PCA from its mean.
      side: "high": patches above the threshold; "low": above it after a change of sign; "auto": the
        sign that puts the outermost patches lower than the others, because the sign of a component
        means nothing and a picture rarely shows its subject at the edge.

    Raises:
      ValueError: see `pca_pictures`.
    """
    if side not in SIDES:
        raise ValueError(f"side {side!r} is unknown; choose one of {', '.join(SIDES)}")
    rows, shapes = _rows(features), [f.shape[:2] for f in features]
    scores = project(rows, principal_directions(rows, 1))[:, 0]
    spread = scores.std()
    if spread <= 1e-6 * max(np.abs(rows).max(), 1e-30):  # nothing but rounding
        return [np.zeros(shape, bool) for shape in shapes]
    maps = _unflatten(scores / spread, shapes)
    down = side == "low" or (side == "auto" and np.mean([_edge_excess(m) for m in maps]) > 0)
    return [(-m if down else m) > threshold for m in maps]


def pca_rgb(patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Colours every patch by the three leading components of all pictures together.

    Equal colours mean similar features, across pictures too; `pca_pictures` removes the background.

    Args:
      patches: [n, P, D] float features, row-major over the grid. Non-finite values count as 0.
      grid: (rows h, columns w) with h * w = P.

    Returns:
      uint8 [n, h*k, w*k, 3] with the least integer k that makes the shorter side 64 px or more.

    Raises:
      ValueError: P is not h * w, or there is nothing to show.
    """
    rows, columns = grid
    if patches.ndim != 3 or 0 in patches.shape or patches.shape[1] != rows * columns:
        raise ValueError(
            f"patches of shape {patches.shape} do not fill a grid of {rows} x {columns}: "
            "pass [n, rows * columns, D] without the cls and register tokens."
        )
    maps = patches.reshape(-1, *grid, patches.shape[-1])
    pixels = _colours(_rows(maps)).reshape(-1, *grid, 3)
    return enlarge(pixels, math.ceil(MIN_SIDE_PX / min(grid)))


def principal_directions(features: np.ndarray, count: int = 3) -> np.ndarray:
    """[N, D] -> [min(count, D), D]: orthonormal, strongest first, largest loading positive.

    An eigenvector's sign is arbitrary; fixing it keeps the colours of two reports comparable.
    """
    centred = features - features.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # ascending eigenvalues
    directions = vectors.T[::-1][:count]
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return directions * signs[:, None]


def project(features: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Scores [N, count] of the centred features [N, D]."""
    return (features - features.mean(axis=0)) @ directions.T


def scale_robust(scores: np.ndarray) -> np.ndarray:
    """Each column's 1st to 99th percentile -> 0..1, clipped; a constant column -> 0.5.

    Without the percentiles a single high-norm patch leaves all others the same colour.
    """
    low, high = np.percentile(scores, [1, 99], axis=0)
    span = high - low
    # Components below 1e-6 of the strongest are rounding, which scaling would show as noise.
    flat = span <= 1e-6 * max(span.max(), 1e-30)
    scaled = np.clip((scores - low) / np.where(flat, 1.0, span), 0.0, 1.0)
    return np.where(flat, 0.5, scaled)


def enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """[..., H, W, 3] -> [..., H*factor, W*factor, 3], nearest neighbour."""
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _colours(features: np.ndarray, darkest: int = 0) -> np.ndarray:
    """[N, D] -> uint8 [N, 3], `darkest` or more; a missing component is neutral."""
    scores = project(features, principal_directions(features))
    colours = np.full((len(features), 3), 0.5)
    colours[:, : scores.shape[1]] = scale_robust(scores)
    return np.rint(darkest + (255 - darkest) * colours).astype(np.uint8)


def _rows(features: Sequence[np.ndarray]) -> np.ndarray:
    """Maps [h, w, D] of all pictures -> float64 [N, D]."""
    if not len(features) or any(f.ndim != 3 or f.size == 0 for f in features):
        shapes = ", ".join(str(f.shape) for f in features) or "no pictures"
        raise ValueError(f"PCA needs maps [h, w, D] of one or more pictures, but got {shapes}")
    dims = sorted({f.shape[-1] for f in features})
    if len(dims) > 1:
        raise ValueError(f"features of widths {dims} cannot share one PCA; use one model")
    rows = np.concatenate([f.reshape(-1, dims[0]) for f in features]).astype(np.float64)
    return np.nan_to_num(rows, posinf=0.0, neginf=0.0)


def _unflatten(rows: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    ends = np.cumsum([h * w for h, w in shapes])[:-1]
    parts = np.split(rows, ends)
    return [p.reshape(*shape, *rows.shape[1:]) for p, shape in zip(parts, shapes, strict=True)]


def _edge_excess(scores: np.ndarray) -> float:
    """Mean of the outermost patches of [h, w] minus that of the others; 0 without others."""
    inner = scores[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    edge = (scores.sum() - inner.sum()) / (scores.size - inner.size)
    return float(edge - inner.mean())
