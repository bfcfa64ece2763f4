"""Resamples the position table to other image sizes, as the released models do.

Two variants exist (FB dinov2/models/vision_transformer.py): models without registers resize with
scale (n + 0.1) / M, no antialias and cubic coefficient a = -0.75; models with registers resize to
the exact size with antialias and a = -0.5. Both are linear and separable: two small matrices, built
here in numpy and applied by one einsum. `jax.image.resize` offers only the second.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

# (offset, antialias) of the four ways in which a table is resampled once, before a run begins:
# with torch's scale factor or exact size, each with and without antialias.
CONVENTIONS: dict[str, tuple[float, bool]] = {
    "offset": (0.1, False),
    "size": (0.0, False),
    "size_antialias": (0.0, True),
    "offset_antialias": (0.1, True),
}


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _sources(size: int, table: int, offset: float) -> tuple[np.ndarray, np.float32]:
    """Where each of `size` outputs lies in the table, [size], and the step between them.

    In fp32, as torch computes it: at 37 positions the rounding shows in the fifth digit.
    """
    step = np.float32(table / (size + offset))
    return step * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), step


def _sharp_weights(size: int, table: int, offset: float) -> np.ndarray:
    """[size, table] torch bicubic without antialias."""
    source, _ = _sources(size, table, offset)
    first = np.floor(source).astype(int) - 1
    weights = np.zeros((size, table))
    for tap in range(4):
        distance = source - (first + tap).astype(np.float32)
        value = _cubic(distance.astype(np.float64), a=-0.75)
        np.add.at(weights, (np.arange(size), np.clip(first + tap, 0, table - 1)), value)
    return weights


def _antialias_weights(size: int, table: int, offset: float) -> np.ndarray:
    """[size, table] PIL-like bicubic: support widened by the scale, edge taps renormalised."""
    source, step = _sources(size, table, offset)
    distance = (source[:, None] - np.arange(table, dtype=np.float32)) / max(step, np.float32(1))
    weights = _cubic(distance.astype(np.float64), a=-0.5)
    return weights / weights.sum(axis=1, keepdims=True)


@functools.cache
def resize_weights(size: int, table: int, offset: float, antialias: bool) -> np.ndarray:
    """The [size, table] matrix that resamples `table` positions to `size`.

    Args:
      offset: the scale is (size + offset) / table.
      antialias: also where it enlarges, it has another cubic coefficient.
    """
    weights = _antialias_weights if antialias else _sharp_weights
    return weights(size, table, offset)


def resize_positions(
    pos_embed: Array, grid: tuple[int, int], offset: float, antialias: bool
) -> Array:
    """Resamples a position table [1, 1 + M*M, D] to [1, 1 + h*w, D] for a grid of h x w patches.

    The cls row does not change. A square grid of the table's own size returns the table itself; a
    non-square grid with the same number of patches is resampled.
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return pos_embed
    table = pos_embed[0, 1:].astype(jnp.float32).reshape(side, side, -1)
    rows = jnp.asarray(resize_weights(grid[0], side, offset, antialias), jnp.float32)
    cols = jnp.asarray(resize_weights(grid[1], side, offset, antialias), jnp.float32)
    resized = jnp.einsum("hi,wj,ijd->hwd", rows, cols, table, precision="highest")
    patches = resized.reshape(1, -1, table.shape[-1]).astype(pos_embed.dtype)
    return jnp.concatenate([pos_embed[:, :1], patches], axis=1)


def resize_squares(
    squares: np.ndarray, grid: tuple[int, int], offset: float, antialias: bool
) -> np.ndarray:
    """Resamples Adam's mean squares [1, 1 + M*M, D] of a position table's gradients.

    The weights w of bicubic resampling may be negative, but no square may. By the inequality of
    Cauchy and Schwarz, (sum w g)^2 <= sum |w| * sum |w| g^2. The right-hand side is what this
    returns: never negative, and no less than the mean square of the gradients that
    `resize_positions` would resample. So the first steps are no longer than Adam's own.
    """
    side = round((squares.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return squares
    rows, cols = (np.abs(resize_weights(n, side, offset, antialias)) for n in grid)
    rows, cols = (w * w.sum(axis=1, keepdims=True) for w in (rows, cols))
    table = squares[0, 1:].reshape(side, side, -1)
    resized = np.einsum("hi,wj,ijd->hwd", rows, cols, table).reshape(1, -1, table.shape[-1])
    return np.concatenate([squares[:, :1], resized.astype(squares.dtype)], axis=1)
