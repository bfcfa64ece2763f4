"""Pictures shrunk to a few cells by exact area averages: the same bits on every machine."""

import numpy as np


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Averages uint8 [H, W, C] over side x side cells of equal area: uint8 [side, side, C].

    A pixel on the border of two cells counts in each by its share. All sums are whole numbers, so
    neither the machine nor its threads change a bit; halves are rounded up. A picture with fewer
    than `side` pixels in a row is enlarged in steps.
    """
    area = image.shape[0] * image.shape[1]
    total = _cells(_cells(image, side).swapaxes(0, 1), side).swapaxes(0, 1)  # side**2 x the mean
    return ((2 * total + area) // (2 * area)).astype(np.uint8)


def _cells(lines: np.ndarray, side: int) -> np.ndarray:
    """[n, ...] -> int64 [side, ...]: sums over equal stretches of the first axis, times `side`.

    Running sums, not a matrix product: products of this size keep all threads of a BLAS busy with
    waiting.
    """
    whole, part = np.divmod(np.arange(side + 1) * len(lines), side)
    sums = np.zeros((side + 1, *lines.shape[1:]), np.int64)
    starts = np.minimum(whole[:-1], len(lines) - 1)
    stretches = np.add.reduceat(lines, starts, axis=0, dtype=np.int64)
    stretches[whole[1:] == whole[:-1]] = 0  # reduceat gives the line itself for an empty stretch
    np.cumsum(stretches, axis=0, out=sums[1:])
    sums *= side
    inside = part > 0
    shape = (-1, *[1] * (lines.ndim - 1))
    sums[inside] += part[inside].reshape(shape) * lines[whole[inside]].astype(np.int64)
    return np.diff(sums, axis=0)
