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


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _offset_weights(size: int, table: int, offset: float) -> np.ndarray:
    """[size, table] torch bicubic without antialias, at explicit scale (size + offset) / table."""
    source = (np.arange(size) + 0.5) * table / (size + offset) - 0.5
    first = np.floor(source).astype(int) - 1
    weights = np.zeros((size, table))
    for tap in range(4):
        value = _cubic(source - (first + tap), a=-0.75)
        np.add.at(weights, (np.arange(size), np.clip(first + tap, 0, table - 1)), value)
    return weights


def _antialias_weights(size: int, table: int) -> np.ndarray:
    """[size, table] PIL-like bicubic: support widened by the scale, edge taps renormalised."""
    scale = max(table / size, 1.0)
    source = (np.arange(size) + 0.5) * table / size - 0.5
    weights = _cubic((source[:, None] - np.arange(table)[None]) / scale, a=-0.5)
    return weights / weights.sum(axis=1, keepdims=True)


@functools.cache
def resize_weights(size: int, table: int, offset: float, antialias: bool) -> np.ndarray:
    """The [size, table] matrix that resamples `table` positions to `size`.

    Raises:
      ValueError: an offset together with antialias, which no released model uses.
    """
    if antialias and offset:
        raise ValueError(
            f"interpolate_offset {offset} with interpolate_antialias is not defined; set one of "
            "them: offset 0.1 (released models without registers) or antialias (with registers)"
        )
    return _antialias_weights(size, table) if antialias else _offset_weights(size, table, offset)


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
