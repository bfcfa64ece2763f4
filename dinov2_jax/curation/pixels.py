"""A descriptor of pictures that needs no weights: soft colours and the directions of edges.

It is made for `whitening`: raw, it tells copies apart poorly. The histogram of directions is in the
manner of HOG (Dalal and Triggs 2005), with square roots and windows that overlap, so that a small
shift changes little.
"""

from collections.abc import Iterator

import numpy as np

SIDE = 16  # cells of a thumbnail
_COLOURS, _WINDOWS, _DIRECTIONS = 8, 4, 8
WIDTH = _COLOURS**2 * 3 + _WINDOWS**2 * _DIRECTIONS  # 320
# Edges weigh more than colours, which many edits change in all cells at once.
_EDGE_WEIGHT = 3.0
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)
_BLOCK = 4096  # pictures


def describe(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails uint8 [N, 16, 16, 3], as `hashes.thumbnail` gives them -> float32 [N, 320].

    The first 192 are the colours of 8 x 8 cells from -0.5 to 0.5; the others are the edges in 8
    directions in 4 x 4 windows, of length 3 together, or 0 where there are none. Not normalised.
    """
    described = np.empty((len(thumbs), WIDTH), np.float32)
    for start in range(0, len(thumbs), _BLOCK):
        block = thumbs[start : start + _BLOCK].astype(np.float32)
        parts = (_colours(block), _edges(block @ _LUMA))
        described[start : start + _BLOCK] = np.concatenate(parts, axis=1)
    return described


def mirror(thumbs: np.ndarray) -> np.ndarray:
    """The thumbnails [N, 16, 16, 3] of the mirrored pictures.

    A mirrored picture has no copy in a pool, but finds there what looks alike by chance, as often
    as the picture itself. So the best scores of mirrored pictures tell how high unrelated ones
    reach, in a pool whose own copies are not known yet. Leave out each picture's score with its
    own mirror: many are symmetric.
    """
    return thumbs[:, :, ::-1]


def _colours(pixels: np.ndarray) -> np.ndarray:
    side = SIDE // _COLOURS
    cells = pixels.reshape(-1, _COLOURS, side, _COLOURS, side, 3).mean((2, 4))
    return cells.reshape(len(pixels), -1) / 255 - 0.5


def _edges(grey: np.ndarray) -> np.ndarray:
    """[N, 16, 16] -> [N, 128]: square roots of the gradient's part in each direction."""
    windows = _windows()
    sums = [windows @ part @ windows.T for part in _directions(grey)]
    roots = np.sqrt(np.stack(sums, axis=1)).reshape(len(grey), -1)
    length = np.linalg.norm(roots, axis=1, keepdims=True)
    return _EDGE_WEIGHT * roots / np.maximum(length, 1e-3)


def _directions(grey: np.ndarray) -> Iterator[np.ndarray]:
    wide = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    right = wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]
    down = wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]
    for angle in 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS:
        across, along = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        yield np.maximum(across * right + along * down, 0)


def _windows() -> np.ndarray:
    """[4, 16]: weights of the pixels in each window, triangles that reach the next one's middle."""
    side = SIDE / _WINDOWS
    middles = (np.arange(_WINDOWS) + 0.5) * side - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(SIDE) - middles[:, None]) / side)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
