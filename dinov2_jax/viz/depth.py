"""Depth as colours, with a scale bar in metres, beside the truth, and where it errs."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinov2_jax.viz.canvas import INK, TEXT_PX, WHITE, beside, titled, under, within
from dinov2_jax.viz.masks import CELL_PX, nearest

MISSING = (150, 150, 150)  # pixels without a depth
MOST_ERROR = 0.5  # relative error that gets the last colour
_BAR_PX = 12
_TICKS = 5


def depth_colours(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours depths: near is bright and far is dark, in even steps of the logarithm.

    Args:
      depth: metres [H, W]; pixels of 0 or less, and NaN, are grey.
      low, high: metres, of the first and of the last colour.

    Returns:
      uint8 [H, W, 3].
    """
    depth = np.asarray(depth, np.float64)
    known = depth > 0  # False for NaN, too
    place = np.log(np.where(known, depth, low) / low) / np.log(high / low)
    return np.where(known[..., None], _map(1 - place), MISSING).astype(np.uint8)


def error_colours(depth: np.ndarray, truth: np.ndarray, most: float = MOST_ERROR) -> np.ndarray:
    """Colours |depth - truth| / truth: black is exact, yellow is `most` or more.

    Args:
      depth, truth: metres [H, W]; pixels without a truth (0 or NaN) are grey.

    Returns:
      uint8 [H, W, 3].
    """
    known = truth > 0
    error = np.abs(depth - truth) / np.where(known, truth, 1)
    return np.where(known[..., None], _map(error / most), MISSING).astype(np.uint8)


def _map(place: np.ndarray) -> np.ndarray:
    """0..1 [H, W] -> colours from black over red to yellow, uint8 [H, W, 3]."""
    levels = np.rint(255 * np.clip(np.nan_to_num(place), 0, 1)).astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[:, :, ::-1]


def scale_bar(low: float, high: float, width_px: int) -> np.ndarray:
    """The colours of `depth_colours` from near to far, with depths in metres below.

    Returns:
      uint8 [h, width_px, 3].
    """
    depths = np.geomspace(low, high, width_px)[None].repeat(_BAR_PX, axis=0)
    ticks = np.geomspace(low, high, _TICKS)
    return _with_ticks(depth_colours(depths, low, high), [f"{x:.3g} m" for x in ticks])


def error_bar(width_px: int, most: float = MOST_ERROR) -> np.ndarray:
    """The colours of `error_colours`, with relative errors in per cent below."""
    places = np.linspace(0, 1, width_px)[None].repeat(_BAR_PX, axis=0)
    return _with_ticks(_map(places), ["0 %", f"{50 * most:.0f} %", f"over {100 * most:.0f} %"])


def _with_ticks(bar: np.ndarray, texts: list[str]) -> np.ndarray:
    """Writes texts under a bar, evenly spread from its left to its right end."""
    width, font = bar.shape[1], ImageFont.load_default(TEXT_PX - 2)
    canvas = Image.new("RGB", (width, TEXT_PX + 6), WHITE)
    pen = ImageDraw.Draw(canvas)
    ended = -np.inf
    for place, text in enumerate(texts):
        wide, share = font.getlength(text), place / (len(texts) - 1)
        left = min(max(0.0, share * width - wide / 2), width - wide)
        last = place == len(texts) - 1
        if left > ended + 4 and (last or left + wide + 4 < width - font.getlength(texts[-1])):
            pen.text((left, 2), text, fill=INK, font=font)
            ended = left + wide
    return np.concatenate([bar, np.asarray(canvas)])


def seen_range(*depths: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of all depths above 0, so that colours differ where they can.

    (1, 10) where no pixel has a depth.
    """
    values = np.concatenate([np.asarray(d, np.float64).ravel() for d in depths])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 1.0, 10.0
    low, high = np.percentile(values, [1, 99])
    return (float(low), float(high)) if high > 1.01 * low else (float(low / 1.1), float(low * 1.1))


def depth_sheet(
    image: np.ndarray, depth: np.ndarray, truth: np.ndarray | None = None, cell_px: int = CELL_PX
) -> np.ndarray:
    """Draws the picture and its depth, and with `truth` the true depth and the relative error.

    All depths of the sheet have the same colours.

    Args:
      image: uint8 [H, W, 3].
      depth: metres [H, W].
      truth: metres [H, W], 0 where it is unknown.
      cell_px: longer side of each cell.

    Returns:
      uint8 [h, w, 3], with a title over each cell and a scale bar below.
    """
    small = within(np.asarray(image), cell_px)
    size, width = small.shape[:2], small.shape[1]
    low, high = seen_range(depth if truth is None else np.where(truth > 0, truth, depth))
    bar = scale_bar(low, high, width)
    shown = depth_colours(nearest(depth, size), low, high)
    blank = np.full((*bar.shape[:2], 3), WHITE, np.uint8)
    cells = [under([titled(small, "picture"), blank], 2)]
    cells.append(under([titled(shown, "predicted depth"), bar], 2))
    if truth is not None:
        true = depth_colours(nearest(truth, size), low, high)
        cells.append(under([titled(true, "true depth"), bar], 2))
        wrong = error_colours(nearest(depth, size), nearest(truth, size))
        error = 100 * relative_error(depth, truth)
        title = f"relative error ({error:.1f} %)"
        cells.append(under([titled(wrong, title), error_bar(width)], 2))
    return beside(cells)


def relative_error(depth: np.ndarray, truth: np.ndarray) -> float:
    """Mean of |depth - truth| / truth where the truth is known; nan if it is nowhere."""
    known = truth > 0
    error = np.abs(depth[known] - truth[known]) / truth[known]
    return float(error.mean()) if known.any() else float("nan")
