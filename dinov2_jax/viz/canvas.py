"""Pictures beside and under each other on one canvas, with a line of text where it helps."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
INK: Colour = (40, 44, 50)
GAP_PX = 8
TEXT_PX = 15


def fit(image: np.ndarray, side_px: int) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to fit a square, and pads it with white."""
    return centre(within(image, side_px), (side_px, side_px))


def within(image: np.ndarray, side_px: int) -> np.ndarray:
    """Resizes uint8 [H, W, 3] so that its longer side is `side_px`."""
    factor = side_px / max(image.shape[:2])
    return resize(image, *(max(1, round(side * factor)) for side in image.shape[:2]))


def resize(image: np.ndarray, height: int, width: int, smooth: bool = True) -> np.ndarray:
    """Resizes uint8 [H, W, 3]; without `smooth` it repeats pixels, as a map of patches needs."""
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((width, height), how))


def framed(
    image: np.ndarray, margins_px: int | tuple[int, int, int, int] = 16, colour: Colour = WHITE
) -> np.ndarray:
    """Adds a margin around a picture, or (left, top, right, bottom) margins."""
    return np.asarray(ImageOps.expand(Image.fromarray(image), margins_px, colour))


def centre(image: np.ndarray, box_px: tuple[int, int], colour: Colour = WHITE) -> np.ndarray:
    """Pads [H, W, 3] on all sides until it has (height, width) or more."""
    down, right = (max(0, box - side) for box, side in zip(box_px, image.shape[:2], strict=True))
    return framed(image, (right // 2, down // 2, -(-right // 2), -(-down // 2)), colour)


def beside(cells: Sequence[np.ndarray], gap_px: int = GAP_PX, colour: Colour = WHITE) -> np.ndarray:
    """Places pictures in a row, vertically centred."""
    height = max(cell.shape[0] for cell in cells)
    space = np.full((height, gap_px, 3), colour, np.uint8)
    parts = [part for cell in cells for part in (centre(cell, (height, 0), colour), space)]
    return np.concatenate(parts[:-1], axis=1)


def under(rows: Sequence[np.ndarray], gap_px: int = GAP_PX, colour: Colour = WHITE) -> np.ndarray:
    """Places pictures in a column, aligned at the left."""
    width = max(row.shape[1] for row in rows)
    space = np.full((gap_px, width, 3), colour, np.uint8)
    wide = [framed(row, (0, 0, width - row.shape[1], 0), colour) for row in rows]
    return np.concatenate([part for row in wide for part in (row, space)][:-1])


def grid(cells: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Places pictures in rows of `columns`."""
    starts = range(0, len(cells), columns)
    return under([beside(cells[start : start + columns]) for start in starts])


def titled(image: np.ndarray, text: str) -> np.ndarray:
    """Adds a line of text above a picture, cut to its width."""
    return np.concatenate([text_line(text, image.shape[1]), image])


def text_line(text: str, width_px: int) -> np.ndarray:
    """Writes text on white, uint8 [TEXT_PX + 7, width_px, 3]; cuts what does not fit."""
    canvas = Image.new("RGB", (width_px, TEXT_PX + 7), WHITE)
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
    hsv = np.stack([hue, np.full_like(hue, 210), np.full_like(hue, 255)], axis=-1)[None]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] if len(hue) else np.zeros((0, 3), np.uint8)
