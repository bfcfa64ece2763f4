"""Attention as a heat map over the picture."""

import cv2
import numpy as np

from dinov2_jax.viz.canvas import grid, titled, within

CELL_PX = 220
COLUMNS = 6


def heat_overlay(image: np.ndarray, heat: np.ndarray, opacity: float = 0.7) -> np.ndarray:
    """Lays a map of patches over a grey picture: low values are dark, high ones yellow.

    Args:
      image: uint8 [H, W, 3].
      heat: [h, w], any unit; `scale` scales it, and cubic interpolation fills the pixels.
      opacity: of the heat, 0 to 1.

    Returns:
      uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    scaled = np.asarray(scale(heat), np.float32)
    smooth = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_CUBIC)
    levels = np.rint(255 * np.clip(smooth, 0, 1)).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[:, :, ::-1]
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None]
    return np.rint(opacity * colours + (1 - opacity) * grey).astype(np.uint8)


def scale(heat: np.ndarray) -> np.ndarray:
    """[h, w] -> 0..1, from the least value to the 99.5th percentile; a constant map -> 0.

    Without the percentile a single high patch hides all others.
    """
    values = np.nan_to_num(np.asarray(heat, np.float64))
    low, high = values.min(), np.percentile(values, 99.5)
    return np.clip((values - low) / max(high - low, 1e-30), 0, 1) if high > low else values * 0


def head_sheet(image: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Draws the picture, its mean attention, and the attention of every head.

    The title of a head says how much of its attention goes to patches; the rest goes to cls and
    registers.

    Args:
      image: uint8 [H, W, 3].
      heads: [heads, h, w], attention to patches.
    """
    small = within(image, CELL_PX)
    cells = [titled(small, "picture"), titled(heat_overlay(small, heads.mean(axis=0)), "mean")]
    for i, heat in enumerate(heads):
        title = f"head {i}: {100 * heat.sum():.0f} % to patches"
        cells.append(titled(heat_overlay(small, heat), title))
    return grid(cells, COLUMNS)
