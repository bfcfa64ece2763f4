"""Patches of two pictures that are mutual nearest neighbours, and lines between them."""

from typing import NamedTuple

import cv2
import numpy as np

from dinov2_jax.features.search import unit
from dinov2_jax.viz.canvas import WHITE, wheel

BLACK = (0, 0, 0)
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
    inside = masks or [np.ones(x.shape[:2], bool) for x in (first, second)]
    kept = [np.flatnonzero(mask) for mask in inside]
    if not all(map(len, kept)):
        return Matches(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    flat = [x.reshape(-1, x.shape[-1])[k] for x, k in zip((first, second), kept, strict=True)]
    cosine = unit(flat[0], np.float64) @ unit(flat[1], np.float64).T
    there, back = cosine.argmax(axis=1), cosine.argmax(axis=0)
    rows = np.flatnonzero(back[there] == np.arange(len(there)))
    rows = rows[np.argsort(-cosine[rows, there[rows]], kind="stable")]
    pairs = Matches(kept[0][rows], kept[1][there[rows]], cosine[rows, there[rows]])
    chosen = _spread(pairs, (first.shape[1], second.shape[1]), most, spacing)
    return Matches(*(values[chosen] for values in pairs))


def draw_matches(
    first: np.ndarray,
    second: np.ndarray,
    matches: Matches,
    grids: tuple[tuple[int, int], tuple[int, int]],
) -> np.ndarray:
    """Draws two pictures side by side, with a line for every match.

    A line's colour follows its place in the first picture, so that neighbours there look alike.

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
    # cv2 takes sub-pixel positions as fixed-point numbers.
    starts, ends = (np.rint(points * 2**_FINE).astype(int).tolist() for points in (starts, ends))
    for start, end, colour in zip(starts, ends, colours, strict=True):
        for width, shade in ((3, BLACK), (1, colour)):  # a dark rim shows on any ground
            cv2.line(canvas, start, end, shade, width, cv2.LINE_AA, _FINE)
    for point, colour in zip(starts + ends, 2 * colours, strict=True):  # last: lines hide dots
        for radius, shade in ((5, BLACK), (4, colour)):
            cv2.circle(canvas, point, radius << _FINE, shade, -1, cv2.LINE_AA, _FINE)
    return canvas


def _check(
    first: np.ndarray, second: np.ndarray, masks: tuple[np.ndarray, np.ndarray] | None
) -> None:
    if first.ndim != 3 or second.ndim != 3 or first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"features of shapes {first.shape} and {second.shape} cannot be matched; pass maps "
            "[h, w, D] of one width"
        )
    grids = [first.shape[:2], second.shape[:2]]
    if masks is not None and [mask.shape for mask in masks] != grids:
        raise ValueError(
            f"masks of shapes {masks[0].shape} and {masks[1].shape} do not fit features of "
            f"{grids[0]} and {grids[1]} patches"
        )


def _spread(pairs: Matches, columns: tuple[int, int], most: int | None, spacing: int) -> list[int]:
    """Chooses the pairs to keep, greedily from the most similar."""
    sides = zip((pairs.first, pairs.second), columns, strict=True)
    places = [np.stack(np.divmod(patches, width), axis=1) for patches, width in sides]
    chosen: list[int] = []
    for pair in range(len(pairs.first)):
        if most is not None and len(chosen) >= most:
            break
        if not any((np.abs(p[chosen] - p[pair]).max(axis=1) < spacing).any() for p in places):
            chosen.append(pair)
    return chosen


def _centres(patches: np.ndarray, grid: tuple[int, int], size_px: tuple[int, ...]) -> np.ndarray:
    """Centres of patches in px: [n, 2], x before y."""
    places = np.stack(np.divmod(patches, grid[1]), axis=1) + 0.5
    return (places * size_px / grid)[:, ::-1]
