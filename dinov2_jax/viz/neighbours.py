"""Whole pictures by their cls features: the nearest of a folder, and all of them on a plane."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax.viz.canvas import (
    INK,
    WHITE,
    beside,
    fit,
    framed,
    text_line,
    titled,
    under,
)
from dinov2_jax.viz.matching import unit
from dinov2_jax.viz.pca import principal_directions, project, scale_robust

THUMB_PX = 128
WIDE_GAP_PX = 28  # between a query and its neighbours


class Neighbours(NamedTuple):
    """Of each query the most similar of a bank: rows int [Q, k], similarity float [Q, k]."""

    rows: np.ndarray
    similarity: np.ndarray


class Plane(NamedTuple):
    """Places [N, 2] in 0..1, and the share of the variance that each axis explains [2]."""

    places: np.ndarray
    explained: np.ndarray


def nearest(
    queries: np.ndarray, bank: np.ndarray, k: int, own: Sequence[int] | None = None
) -> Neighbours:
    """The k rows of `bank` most like each query, by cosine, the most similar first.

    Args:
      queries: [Q, D].
      bank: [N, D].
      k: fewer where the bank is smaller.
      own: the query's own row in the bank, which is passed over; -1 where there is none.

    Raises:
      ValueError: nothing to compare, or features of other widths.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1] or k < 1:
        raise ValueError(
            f"{k} neighbours of queries {queries.shape} in a bank {bank.shape} cannot be found; "
            "pass k of 1 or more and features [n, D] of one width"
        )
    cosine = unit(queries) @ unit(bank).T
    given = [-1] * len(queries) if own is None else list(own)
    for query, row in enumerate(given):
        if row >= 0:
            cosine[query, row] = -np.inf
    k = min(k, len(bank) - (1 if any(row >= 0 for row in given) else 0))
    rows = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return Neighbours(rows, np.take_along_axis(cosine, rows, axis=1))


def neighbour_sheet(
    queries: Sequence[np.ndarray],
    names: Sequence[str],
    bank: Sequence[np.ndarray],
    found: Neighbours,
) -> np.ndarray:
    """A row a query: at the left itself, at the right its neighbours under their similarity.

    Args:
      queries: uint8 [H, W, 3] each.
      names: of the queries.
      bank: uint8 [H, W, 3] each; only those that are neighbours are looked at.
      found: of `nearest`.

    Returns:
      uint8 [H, W, 3].
    """
    lines = []
    for query, name, rows, similarity in zip(queries, names, *found, strict=True):
        cells = [
            titled(fit(bank[row], THUMB_PX), f"{value:.2f}")
            for row, value in zip(rows, similarity, strict=True)
        ]
        left = titled(fit(query, THUMB_PX), name)
        lines.append(beside([left, beside(cells)], WIDE_GAP_PX) if cells else left)
    return framed(under(lines))


def plane(features: np.ndarray) -> Plane:
    """Places pictures by the two leading principal components of their unit features [N, D].

    Each axis runs from the 1st to the 99th percentile; what lies beyond is at its end.
    """
    values = unit(features)
    scores = project(values, principal_directions(values, 2))
    if scores.shape[1] < 2:
        scores = np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))
    total = ((values - values.mean(axis=0)) ** 2).sum()
    return Plane(scale_robust(scores), (scores**2).sum(axis=0) / max(total, 1e-30))


def scatter_sheet(
    thumbs: Sequence[np.ndarray], found: Plane, size_px: tuple[int, int] = (760, 1000)
) -> np.ndarray:
    """Every picture as a thumbnail at its place, first component to the right, second up.

    Args:
      thumbs: uint8 [H, W, 3] each, in the order of `found.places`.
      size_px: (height, width) of the plane.

    Returns:
      uint8 [H, W, 3].
    """
    height, width = size_px
    side = int(np.clip(0.75 * (height * width / max(len(thumbs), 1)) ** 0.5, 24, 110))
    canvas = np.full((height, width, 3), WHITE, np.uint8)
    for thumb, (x, y) in zip(thumbs, found.places, strict=True):
        cell = _bordered(fit(thumb, side))
        top = round((1 - y) * (height - cell.shape[0]))
        left = round(x * (width - cell.shape[1]))
        canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    shares = [f"{100 * share:.0f} %" for share in found.explained]
    text = f"right: first component, {shares[0]} of the variance; up: second, {shares[1]}"
    return framed(under([canvas, text_line(text, width)]))


def _bordered(cell: np.ndarray) -> np.ndarray:
    """A thin rim, so that overlapping thumbnails stay apart."""
    rim = np.full((cell.shape[0] + 2, cell.shape[1] + 2, 3), INK, np.uint8)
    rim[1:-1, 1:-1] = cell
    return rim
