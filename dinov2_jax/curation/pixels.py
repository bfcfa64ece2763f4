"""A descriptor of pictures that needs no weights: soft colours and the directions of edges.

It is made for `whitening`: raw, it separates copies poorly. The histogram of directions is in the
manner of HOG (Dalal and Triggs 2005), with square roots and windows that overlap, so that a small
shift changes little.
"""

from collections.abc import Iterable

import numpy as np

from dinov2_jax.curation.area import shrink

SIDE = 32  # cells that are looked at
_GRID, _DIRECTIONS = 4, 8
WIDTH = _GRID**2 * (3 + _DIRECTIONS)
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)
# Edges weigh more than colours, which edits change in all cells at once.
_EDGE_WEIGHT = 3.0
_BLOCK = 1024  # pictures


def describe(images: Iterable[np.ndarray]) -> np.ndarray:
    """uint8 RGB [H, W, 3] of any sizes -> float32 [N, 176], not normalised.

    The first 48 are the colours of 4 x 4 cells from -0.5 to 0.5, the others the edges in 8
    directions in 4 x 4 windows. The aspect ratio is lost.
    """
    parts, block = [], []
    for image in images:
        block.append(shrink(image, SIDE))
        if len(block) == _BLOCK:
            parts.append(of_cells(np.stack(block)))
            block = []
    if block:
        parts.append(of_cells(np.stack(block)))
    return np.concatenate(parts) if parts else np.zeros((0, WIDTH), np.float32)


def of_cells(cells: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32, 3], as `area.shrink` gives them -> float32 [N, 176]."""
    pixels = cells.astype(np.float32)
    side = SIDE // _GRID
    colours = pixels.reshape(-1, _GRID, side, _GRID, side, 3).mean((2, 4)) / 255 - 0.5
    edges = _edges(pixels @ _LUMA)
    return np.concatenate([x.reshape(len(cells), -1) for x in (colours, edges)], axis=1)


def _edges(grey: np.ndarray) -> np.ndarray:
    """[N, 32, 32] -> [N, 4, 4, 8] of length 3: roots of the gradient's part in each direction."""
    wide = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down, right = wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1], wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]
    windows, found = _windows(), []
    for angle in 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS:
        part = np.maximum(np.float32(np.cos(angle)) * right + np.float32(np.sin(angle)) * down, 0)
        found.append(windows @ part @ windows.T)
    roots = np.sqrt(np.stack(found, axis=-1))
    length = np.sqrt((roots**2).sum((1, 2, 3), keepdims=True))
    return _EDGE_WEIGHT * roots / np.maximum(length, 1e-3)


def _windows() -> np.ndarray:
    """[4, 32]: triangles two cells of the grid wide; what lies outside counts at the border."""
    side = SIDE // _GRID
    triangle = np.minimum(np.arange(2 * side) + 1, 2 * side - np.arange(2 * side))
    windows = np.zeros((_GRID, SIDE), np.float32)
    for cell in range(_GRID):
        places = np.clip(cell * side - side // 2 + np.arange(2 * side), 0, SIDE - 1)
        np.add.at(windows[cell], places, (triangle / triangle.sum()).astype(np.float32))
    return windows
