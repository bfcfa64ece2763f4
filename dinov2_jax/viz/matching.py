"""Patches of two pictures that are mutual nearest neighbours, and lines between them."""

from typing import NamedTuple

import cv2
import numpy as np

from dinov2_jax.features.search import unit
from dinov2_jax.viz.canvas import WHITE, wheel

LINE_GAP_PX = 24  # between the two pictures
_FINE = 4  # cv2 draws in fractions of 1 / 2**_FINE px


class Matches(NamedTuple):
    """Matching patches, the most similar first.

    Attributes:
      first, second: int [M], patch numbers, row-major over the picture's grid.
      similarity: float [M], cosine of their features.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


def mutual_matches(
    first: np.ndarray,
    second: np.ndarray,
    masks: tuple[np.ndarray, np.ndarray] | None = None,
    most: int | None = None,
    spacing: int = 1,
) -> Matches:
    """Finds pairs of patches that are each other's nearest by cosine.

    Args:
      first, second: features [h, w, D] of two pictures; grids may differ.
      masks: bool [h, w] of each; only patches that are True take part.
      most: how many of the most similar pairs are kept; None: all.
      spacing: a pair is dropped if a more similar kept pair lies fewer patches away in either
        picture (the paper's non-maximum suppression); 1 drops none.

    Raises:
      ValueError: the shapes of features or masks do not fit each other.
    """
    _check(first, second, masks)
    kept = [np.flatnonzero(np.ones(first.shape[:2], bool) if masks is None else masks[0])]
    kept.append(np.flatnonzero(np.ones(second.shape[:2], bool) if masks is None else masks[1]))
    if not (len(kept[0]) and len(kept[1])):
        return Matches(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    flat = [x.reshape(-1, x.shape[-1])[k] for x, k in zip((first, second), kept, strict=True)]
    cosine = unit(flat[0], np.float64) @ unit(flat[1], np.float64).T
    there, back = cosine.argmax(axis=1), cosine.argmax(axis=0)
    rows = np.flatnonzero(back[there] == np.arange(len(there)))
    rows = rows[np.argsort(-cosine[rows, there[rows]], kind="stable")]
    found = Matches(kept[0][rows], kept[1][there[rows]], cosine[rows, there[rows]])
    chosen = _spread(found, (first.shape[1], second.shape[1]), most, spacing)
    return Matches(*(values[chosen] for values in found))


def draw_matches(
    first: np.ndarray,
    second: np.ndarray,
    matches: Matches,
    grids: tuple[tuple[int, int], tuple[int, int]],
) -> np.ndarray:
    """Draws two pictures side by side, with a line in its own colour for every match.

    Colours follow the place in the first picture, so that neighbours there look alike.

    Args:
      first, second: uint8 [H, W, 3].
      grids: (rows, columns) of patches of each.

    Returns:
      uint8 [max H, W1 + 24 + W2, 3].
    """
    height = max(first.shape[0], second.shape[0])
    shift = first.shape[1] + LINE_GAP_PX
    canvas = np.full((height, shift + second.shape[1], 3), WHITE, np.uint8)
    canvas[: first.shape[0], : first.shape[1]] = first
    canvas[: second.shape[0], shift:] = second
    starts = _centres(matches.first, grids[0], first.shape[:2])
    ends = _centres(matches.second, grids[1], second.shape[:2]) + np.array([shift, 0])
    centre = np.array([first.shape[1], first.shape[0]]) / 2
    turns = np.arctan2(*(starts - centre).T[::-1]) / (2 * np.pi)
    colours = wheel(turns).tolist()
    for start, end, colour in zip(starts, ends, colours, strict=True):
        _line(canvas, start, end, colour)
    for points in (starts, ends):  # after all lines, which would hide them
        for point, colour in zip(points, colours, strict=True):
            _dot(canvas, point, colour)
    return canvas


def _check(
    first: np.ndarray, second: np.ndarray, masks: tuple[np.ndarray, np.ndarray] | None
) -> None:
    if first.ndim != 3 or second.ndim != 3 or first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"features of shapes {first.shape} and {second.shape} cannot be matched; pass maps "
            "[h, w, D] of one width"
        )
    if masks is not None and any(
        mask.shape != x.shape[:2] for mask, x in zip(masks, (first, second), strict=True)
    ):
        raise ValueError(
            f"masks of shapes {masks[0].shape} and {masks[1].shape} do not fit features of "
            f"{first.shape[:2]} and {second.shape[:2]} patches"
        )


def _spread(found: Matches, columns: tuple[int, int], most: int | None, spacing: int) -> list[int]:
    """Chooses the pairs to keep, greedily from the most similar."""
    places = [
        np.stack(np.divmod(side, width), axis=1)
        for side, width in zip((found.first, found.second), columns, strict=True)
    ]
    chosen: list[int] = []
    for pair in range(len(found.first)):
        if most is not None and len(chosen) >= most:
            break
        near = [np.abs(p[chosen] - p[pair]).max(axis=1) < spacing for p in places]
        if not (np.any(near[0]) or np.any(near[1])):
            chosen.append(pair)
    return chosen


def _centres(patches: np.ndarray, grid: tuple[int, int], size_px: tuple[int, ...]) -> np.ndarray:
    """Centres of patches in px: [n, 2], x before y."""
    row, column = np.divmod(patches, grid[1])
    return np.stack(
        [(column + 0.5) * size_px[1] / grid[1], (row + 0.5) * size_px[0] / grid[0]], axis=1
    )


def _line(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, colour: list[int]) -> None:
    """Draws a line with a dark rim that shows on any ground."""
    for width, shade in ((3, [0, 0, 0]), (1, colour)):
        cv2.line(canvas, _fixed(start), _fixed(end), shade, width, cv2.LINE_AA, _FINE)


def _dot(canvas: np.ndarray, point: np.ndarray, colour: list[int]) -> None:
    for radius, shade in ((5, [0, 0, 0]), (4, colour)):
        cv2.circle(canvas, _fixed(point), radius << _FINE, shade, -1, cv2.LINE_AA, _FINE)


def _fixed(point: np.ndarray) -> list[int]:
    """Pixels as the fixed-point numbers that cv2 draws sub-pixel positions from."""
    return np.rint(point * 2**_FINE).astype(int).tolist()
