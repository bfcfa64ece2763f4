"""Laying pictures out beside and under each other, with a line of text where it helps."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WHITE = 255
INK = (40, 44, 50)
GAP_PX = 8
TEXT_PX = 15


def fit(image: np.ndarray, side_px: int) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to fit a square, and pads it with white."""
    return centre(within(image, side_px), (side_px, side_px))


def within(image: np.ndarray, side_px: int) -> np.ndarray:
    """Resizes uint8 [H, W, 3] so that its longer side is `side_px`."""
    factor = side_px / max(image.shape[:2])
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return resize(image, height, width)


def resize(image: np.ndarray, height: int, width: int, smooth: bool = True) -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3]; not smooth: pixels repeated, for maps of patches."""
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), how))


def centre(image: np.ndarray, box_px: tuple[int, int]) -> np.ndarray:
    """Pads [H, W, 3] with white to (height, width) or more."""
    spare = [max(0, box - side) for box, side in zip(box_px, image.shape[:2], strict=True)]
    margins = [(s // 2, s - s // 2) for s in spare]
    return np.pad(image, (*margins, (0, 0)), constant_values=WHITE)


def beside(cells: Sequence[np.ndarray], gap_px: int = GAP_PX) -> np.ndarray:
    """Pictures in a row, vertically centred."""
    height = max(cell.shape[0] for cell in cells)
    space = np.full((height, gap_px, 3), WHITE, np.uint8)
    parts = [part for cell in cells for part in (centre(cell, (height, 0)), space)]
    return np.concatenate(parts[:-1], axis=1)


def under(rows: Sequence[np.ndarray], gap_px: int = GAP_PX) -> np.ndarray:
    """Pictures in a column, aligned at the left."""
    width = max(row.shape[1] for row in rows)
    space = np.full((gap_px, width, 3), WHITE, np.uint8)
    wide = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=WHITE)
        for row in rows
    ]
    return np.concatenate([part for row in wide for part in (row, space)][:-1])


def grid(cells: Sequence[np.ndarray], columns: int, gap_px: int = GAP_PX) -> np.ndarray:
    """Pictures in rows of `columns`."""
    starts = range(0, len(cells), columns)
    return under([beside(cells[start : start + columns], gap_px) for start in starts], gap_px)


def framed(image: np.ndarray, margin_px: int = 2 * GAP_PX) -> np.ndarray:
    """A white margin around a sheet, so that it can be shown on any ground."""
    margin = (margin_px, margin_px)
    return np.pad(image, (margin, margin, (0, 0)), constant_values=WHITE)


def titled(image: np.ndarray, text: str) -> np.ndarray:
    """A line of text above a picture, cut to its width."""
    return np.concatenate([text_line(text, image.shape[1]), image])


def text_line(text: str, width_px: int) -> np.ndarray:
    """A line of text on white, uint8 [TEXT_PX + 7, width_px, 3]; what does not fit is cut."""
    canvas = Image.new("RGB", (width_px, TEXT_PX + 7), (WHITE,) * 3)
    font = ImageFont.load_default(TEXT_PX)
    shown = text
    while shown and font.getlength(shown) > width_px:
        text = text[:-1]
        shown = text + "\N{HORIZONTAL ELLIPSIS}" if text else ""
    ImageDraw.Draw(canvas).text((0, 1), shown, fill=INK, font=font)
    return np.asarray(canvas)


def wheel(turns: np.ndarray) -> np.ndarray:
    """Positions on the colour circle, in turns [n] -> bright uint8 RGB [n, 3]."""
    hue = np.asarray(np.rint(np.asarray(turns) % 1 * 180) % 180, np.uint8)
    full = np.full_like(hue, 255)
    hsv = np.stack([hue, np.full_like(hue, 210), full], axis=-1)[None]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] if len(hue) else np.zeros((0, 3), np.uint8)
