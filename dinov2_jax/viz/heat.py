"""Attention as heat laid over the picture."""

from collections.abc import Sequence

import cv2
import numpy as np

from dinov2_jax.viz.canvas import grid, titled, within

CELL_PX = 220
COLUMNS = 6


def heat_overlay(image: np.ndarray, heat: np.ndarray, opacity: float = 0.7) -> np.ndarray:
    """Lays a map of patches over a picture: dark where it is low, yellow where it is high.

    Args:
      image: uint8 [H, W, 3]; shown in grey.
      heat: [h, w], any unit: from its least value to its 99.5th percentile, so that one patch does
        not hide all others. It is interpolated between patches.
      opacity: of the heat, 0 to 1.

    Returns:
      uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    smooth = cv2.resize(
        np.asarray(scale(heat), np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    levels = np.rint(255 * np.clip(smooth, 0, 1)).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[:, :, ::-1]
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None]
    return np.rint(opacity * colours + (1 - opacity) * grey).astype(np.uint8)


def scale(heat: np.ndarray) -> np.ndarray:
    """[h, w] -> 0..1 from the least value to the 99.5th percentile; all alike: 0."""
    values = np.nan_to_num(np.asarray(heat, np.float64))
    low, high = values.min(), np.percentile(values, 99.5)
    return np.clip((values - low) / max(high - low, 1e-30), 0, 1) if high > low else values * 0


def head_sheet(image: np.ndarray, heads: np.ndarray, titles: Sequence[str] = ()) -> np.ndarray:
    """The picture, its mean attention and that of every head.

    Args:
      image: uint8 [H, W, 3].
      heads: [heads, h, w], attention to patches.
      titles: of the heads; by default their numbers, and what share of the attention goes to
        patches and not to cls or registers.
    """
    small = within(image, CELL_PX)
    names = titles or [
        f"head {i}: {100 * heat.sum():.0f} % to patches" for i, heat in enumerate(heads)
    ]
    cells = [titled(small, "picture"), titled(heat_overlay(small, heads.mean(axis=0)), "mean")]
    for heat, name in zip(heads, names, strict=True):
        cells.append(titled(heat_overlay(small, heat), name))
    return grid(cells, COLUMNS)
