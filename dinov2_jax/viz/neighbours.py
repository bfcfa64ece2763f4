"""Pictures by their cls features: the nearest neighbours of a few, and a folder on a plane."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax.features.search import search, unit
from dinov2_jax.viz.canvas import INK, WHITE, beside, fit, framed, text_line, titled, under
from dinov2_jax.viz.pca import principal_directions, project, scale_robust

THUMB_PX = 128
WIDE_GAP_PX = 28  # between a query and its neighbours


class Neighbours(NamedTuple):
    """The most similar rows of a bank for each query: rows int [Q, k], similarity [Q, k]."""

    rows: np.ndarray
    similarity: np.ndarray


class Plane(NamedTuple):
    """Places [N, 2] in 0..1, and the share of the variance that each axis explains [2]."""

    places: np.ndarray
    explained: np.ndarray


def nearest(
    queries: np.ndarray, bank: np.ndarray, k: int, own: Sequence[int] | None = None
) -> Neighbours:
    """Finds the k rows of `bank` that are most similar to each query by cosine, best first.

    Args:
      queries: [Q, D].
      bank: [N, D].
      k: fewer where the bank is smaller.
      own: each query's own row in the bank, which is left out; -1 if it has none.

    Raises:
      ValueError: k is below 1, or the widths differ.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1] or k < 1:
        raise ValueError(
            f"{k} neighbours of queries {queries.shape} in a bank {bank.shape} cannot be found; "
            "pass k of 1 or more and features [n, D] of one width"
        )
    own = np.full(len(queries), -1) if own is None else np.asarray(own)
    spare = int((own >= 0).any())
    k = min(k, len(bank) - spare)
    similarity, rows = search(bank, queries, k + spare)
    order = np.argsort(rows == own[:, None], axis=1, kind="stable")[:, :k]  # own rows go last
    return Neighbours(*(np.take_along_axis(x, order, axis=1) for x in (rows, similarity)))


def neighbour_sheet(
    queries: Sequence[np.ndarray],
    names: Sequence[str],
    bank: Sequence[np.ndarray],
    neighbours: Neighbours,
) -> np.ndarray:
    """Draws a row for each query: the query, then its neighbours under their similarity.

    Args:
      queries: uint8 [H, W, 3] each.
      names: one for each query.
      bank: uint8 [H, W, 3] each; only neighbours are read.
      neighbours: from `nearest`.

    Returns:
      uint8 [H, W, 3].
    """
    lines = []
    for query, name, rows, similarity in zip(queries, names, *neighbours, strict=True):
        cells = [
            titled(fit(bank[row], THUMB_PX), f"{value:.2f}")
            for row, value in zip(rows, similarity, strict=True)
        ]
        left = titled(fit(query, THUMB_PX), name)
        lines.append(beside([left, beside(cells)], WIDE_GAP_PX) if cells else left)
    return framed(under(lines))


def plane(features: np.ndarray) -> Plane:
    """Places pictures by the two leading principal components of their unit features [N, D].

    Each axis runs from the 1st to the 99th percentile; values beyond lie at its end.
    """
    values = unit(features, np.float64)
    scores = project(values, principal_directions(values, 2))
    scores = np.pad(
        scores, ((0, 0), (0, 2 - scores.shape[1]))
    )  # features [N, 1] have one component
    total = ((values - values.mean(axis=0)) ** 2).sum()
    return Plane(scale_robust(scores), (scores**2).sum(axis=0) / max(total, 1e-30))


def scatter_sheet(
    thumbs: Sequence[np.ndarray], placed: Plane, size_px: tuple[int, int] = (760, 1000)
) -> np.ndarray:
    """Draws each picture as a thumbnail at its place: the first component right, the second up.

    Args:
      thumbs: uint8 [H, W, 3] each, in the order of `placed.places`.
      size_px: height and width of the plane.

    Returns:
      uint8 [H, W, 3].
    """
    height, width = size_px
    side = int(np.clip(0.75 * (height * width / max(len(thumbs), 1)) ** 0.5, 24, 110))
    canvas = np.full((height, width, 3), WHITE, np.uint8)
    for thumb, (x, y) in zip(thumbs, placed.places, strict=True):
        cell = framed(fit(thumb, side), 1, INK)  # a rim, so that thumbnails stay apart
        top = round((1 - y) * (height - cell.shape[0]))
        left = round(x * (width - cell.shape[1]))
        canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    shares = [f"{100 * share:.0f} %" for share in placed.explained]
    text = f"right: first component, {shares[0]} of the variance; up: second, {shares[1]}"
    return framed(under([canvas, text_line(text, width)]))
