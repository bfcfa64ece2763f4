"""Classes of pixels: laid over the picture, with a legend, beside the truth, and where they err."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinov2_jax.viz.canvas import GAP_PX, INK, TEXT_PX, WHITE, beside, titled, under, within

IGNORED = 255  # a pixel without a class
CELL_PX = 312  # longer side of a cell; three of them fill a page
RIGHT = (58, 160, 92)
WRONG = (208, 58, 58)
_LEGEND_ROWS = 4  # at most; the smallest classes are left out
_OTHERS = (150, 150, 150)


def overlay(
    image: np.ndarray, mask: np.ndarray, colours: np.ndarray, opacity: float = 0.6
) -> np.ndarray:
    """Lays the colours of classes over a picture; ignored pixels stay as they are.

    Args:
      image: uint8 [H, W, 3].
      mask: classes [H, W], `IGNORED` where there is none.
      colours: RGB of each class, uint8 [K, 3].
      opacity: of the colours, 0 to 1. Lines between classes are not mixed.

    Returns:
      uint8 [H, W, 3].
    """
    image, mask = np.asarray(image), np.asarray(mask)
    known = mask < len(colours)
    coat = colours[np.where(known, mask, 0)]
    mixed = np.rint(opacity * coat + (1 - opacity) * image).astype(np.uint8)
    edge = _edges(mask) & known
    return np.where((known & ~edge)[..., None], mixed, np.where(edge[..., None], coat, image))


def _edges(mask: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another class, bool [H, W]."""
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    return edge


def legend(
    masks: Sequence[np.ndarray], names: Sequence[str], colours: np.ndarray, width_px: int
) -> np.ndarray:
    """Names the classes that occur, the largest first, each behind a patch of its colour.

    Args:
      masks: classes [H, W] of one or more pictures.
      names: of the classes; () for their numbers.
      width_px: of the legend.

    Returns:
      uint8 [h, width_px, 3]; some rows, less where few classes occur.
    """
    counts = sum(np.bincount(np.asarray(m).ravel(), minlength=256)[: len(colours)] for m in masks)
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    entries = [(names[k] if names else f"class {k}", tuple(map(int, colours[k]))) for k in order]
    rows = _rows(entries, width_px)
    if len(rows) > _LEGEND_ROWS:
        kept = sum(map(len, rows[:_LEGEND_ROWS])) - 1
        rows = _rows([*entries[:kept], (f"{len(entries) - kept} others", _OTHERS)], width_px)
    return _draw_legend(rows[:_LEGEND_ROWS], width_px)


def _rows(entries: list[tuple], width_px: int) -> list[list[tuple[int, str, tuple]]]:
    """Breaks entries into rows: (left edge in px, text, colour) each."""
    font, rows, left = ImageFont.load_default(TEXT_PX), [[]], 0
    for text, colour in entries:
        wide = TEXT_PX + 6 + round(font.getlength(text)) + 2 * GAP_PX
        if left and left + wide > width_px:
            rows.append([])
            left = 0
        rows[-1].append((left, text, colour))
        left += wide
    return rows


def _draw_legend(rows: list[list[tuple[int, str, tuple]]], width_px: int) -> np.ndarray:
    step, font = TEXT_PX + 7, ImageFont.load_default(TEXT_PX)
    canvas = Image.new("RGB", (width_px, step * len(rows)), WHITE)
    pen = ImageDraw.Draw(canvas)
    for row, entries in enumerate(rows):
        for left, text, colour in entries:
            top = row * step + 3
            pen.rectangle((left, top, left + TEXT_PX - 1, top + TEXT_PX - 1), fill=colour)
            pen.text((left + TEXT_PX + 6, row * step + 1), text, fill=INK, font=font)
    return np.asarray(canvas)


def error_map(image: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Colours right pixels green and wrong ones red over the grey picture.

    Args:
      image: uint8 [H, W, 3].
      mask, truth: classes [H, W]. Pixels whose truth is `IGNORED` stay grey.

    Returns:
      uint8 [H, W, 3].
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    base = np.repeat(grey[..., None], 3, axis=-1)
    judged = (truth != IGNORED)[..., None]
    coat = np.where((mask == truth)[..., None], RIGHT, WRONG)
    return np.where(judged, np.rint(0.6 * coat + 0.4 * base), base).astype(np.uint8)


def right_share(mask: np.ndarray, truth: np.ndarray) -> float:
    """Per cent of the judged pixels that have the right class; nan without such pixels."""
    judged = truth != IGNORED
    return float(100 * (mask[judged] == truth[judged]).mean()) if judged.any() else float("nan")


def mask_sheet(
    image: np.ndarray,
    mask: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    truth: np.ndarray | None = None,
    cell_px: int = CELL_PX,
) -> np.ndarray:
    """Draws the picture, its predicted classes, and with `truth` the true ones and the errors.

    Args:
      image: uint8 [H, W, 3].
      mask, truth: classes [H, W].
      names, colours: of the classes, see `legend` and `overlay`.
      cell_px: longer side of each cell.

    Returns:
      uint8 [h, w, 3], with a title over each cell and a legend below.
    """
    small = within(np.asarray(image), cell_px)
    shown = nearest(mask, small.shape[:2])
    cells = [titled(small, "picture"), titled(overlay(small, shown, colours), "predicted")]
    masks = [shown]
    if truth is not None:
        true = nearest(truth, small.shape[:2])
        share = right_share(mask, truth)
        cells.append(titled(overlay(small, true, colours), "truth"))
        cells.append(titled(error_map(small, shown, true), f"errors ({share:.0f} % right)"))
        masks.append(true)
    row = beside(cells)
    return under([row, legend(masks, names, colours, row.shape[1])])


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes classes [H, W] to `size`, without mixing them."""
    rows, cols = (
        (np.arange(n) * old // n) for n, old in zip(size, np.asarray(mask).shape, strict=True)
    )
    return np.asarray(mask)[rows[:, None], cols]
