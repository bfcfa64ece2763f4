"""Pictures shrunk to a few cells by exact area averages: the same bits on every machine."""

import numpy as np

# Whole numbers up to here are exact in float32, whatever the order in which they are added.
_EXACT_FLOAT32 = 2**24


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Averages uint8 [H, W, C] over side x side cells of equal area: uint8 [side, side, C].

    A pixel on the border of two cells counts in each by its share. Sums are whole numbers that
    float32 and float64 hold exactly, so neither the machine nor its threads change a bit; halves
    are rounded up. A picture with fewer than `side` pixels in a row is enlarged in steps.
    """
    height, width, channels = image.shape
    kind = np.float32 if 255 * height < _EXACT_FLOAT32 else np.float64
    flat = image.reshape(height, width * channels).astype(kind)
    rows = (_overlaps(height, side).astype(kind) @ flat).astype(np.float64)
    rows = rows.reshape(side, width, channels).transpose(0, 2, 1)
    total = rows @ _overlaps(width, side).T  # [side, C, side], at most 255 H W: exact
    area = height * width
    means = (2 * total.astype(np.int64) + area) // (2 * area)
    return means.transpose(0, 2, 1).astype(np.uint8)


def _overlaps(pixels: int, side: int) -> np.ndarray:
    """[side, pixels]: how much of pixel p lies in cell c, in 1/side px; a row's sum is `pixels`."""
    cell = np.arange(side)[:, None] * pixels
    pixel = np.arange(pixels)[None, :] * side
    shared = np.minimum(cell + pixels, pixel + side) - np.maximum(cell, pixel)
    return np.maximum(shared, 0).astype(np.float64)
