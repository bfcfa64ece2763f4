"""Patch features as colours: the first three principal components as red, green and blue."""

import math

import numpy as np

MIN_SIDE_PX = 64


def pca_rgb(patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Colours every patch by its three leading components, computed over all pictures jointly.

    Equal colours therefore mean similar features across pictures (DINOv2, section 7.6 and
    figure 1, without the removal of the background).

    Args:
        patches: [n, P, D] float features, row-major over the grid. Non-finite values count as 0.
        grid: (rows h, columns w) with h * w = P.

    Returns:
        uint8 [n, h*k, w*k, 3], enlarged by an integer k so that the shorter side has at least
        64 px.

    Raises:
        ValueError: P is not h * w, or there is nothing to show.
    """
    rows, columns = grid
    if patches.ndim != 3 or 0 in patches.shape or patches.shape[1] != rows * columns:
        raise ValueError(
            f"patches of shape {patches.shape} do not fill a grid of {rows} x {columns}: "
            "pass [n, rows * columns, D] without the cls and register tokens."
        )
    n, _, dim = patches.shape
    features = np.nan_to_num(patches.astype(np.float64), posinf=0.0, neginf=0.0).reshape(-1, dim)
    scores = project(features, principal_directions(features))
    colours = np.full((len(features), 3), 0.5)
    colours[:, : scores.shape[1]] = scale_robust(scores)
    pixels = np.rint(255 * colours).astype(np.uint8).reshape(n, rows, columns, 3)
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
