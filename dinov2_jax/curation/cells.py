"""All pairs of rows whose cosine lies above a threshold, within a pool or against a bank.

A small pool is compared whole. A large one is sorted into cells of k-means, and each row is
compared with the rows of the cells nearest to it, cell by cell in dense products: the paper's
inverted lists without its quantisation (appendix A). Cosines are always those of the given rows.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from dinov2_jax.curation import kmeans
from dinov2_jax.curation.blocks import Blocks, CurationError
from dinov2_jax.curation.join import COLUMNS, ROWS, Piece, Pool, rows_near
from dinov2_jax.curation.plus_plus import sample_rows
from dinov2_jax.features.search import Bank, search, unit, unit_rows

# Rows up to which all pairs are cheap: about a minute of 2 CPU cores, and half an hour of an H200.
EXACT_ROWS = {"cpu": 200_000, "default": 30_000_000}
# Products a second, for estimates: a CPU core with AVX-512, and half of an H100's peak in bf16.
_SPEED = {"cpu": 1e11, "default": 4e14}
_CELL_ROWS = 64  # fewer rows in a cell are mostly padding
_TRAIN_ROWS = 64  # of a cell
_TRAIN_STEPS = 8


class Pairs(NamedTuple):
    """Pairs of rows a < b int64, in the order of (a, b), and their cosines fp32, all [p]."""

    a: np.ndarray
    b: np.ndarray
    cosine: np.ndarray


class Plan(NamedTuple):
    """How a pool is compared; `str(plan)` is a sentence to print before it starts.

    Attributes:
      cells: their number; 0 compares all pairs.
      share: the part of all pairs that is compared if cells have equal sizes.
      flops: floating-point operations of it all. `seconds` is a rough estimate on this machine.
    """

    rows: int
    cells: int
    share: float
    flops: float
    seconds: float

    def __str__(self) -> str:
        how = f"through {self.cells:,} cells" if self.cells else "exactly"
        return (
            f"{self.rows:,} rows are compared {how}: {100 * self.share:.3g} % of the pairs, "
            f"{self.flops / 1e12:,.3g} TFLOP, about {self.seconds / 3600:.2g} hours"
        )


def plan_pairs(rows: int, width: int, *, cells: int | None = None, probes: int = 16) -> Plan:
    """Chooses between all pairs and cells by the number of rows; `cells` as in `pairs_above`."""
    if cells is not None and not 0 <= cells <= rows:
        raise CurationError(f"cells={cells} for {rows} rows; use 0 (all pairs) to rows / 64")
    kind = "cpu" if jax.default_backend() == "cpu" else "default"
    if cells is None:
        # Sorting into k cells costs n * k products, the join n * probes * n / k.
        best = min(round((probes * rows) ** 0.5), rows // _CELL_ROWS)
        cells = 0 if rows <= EXACT_ROWS[kind] else best
    share = min(probes / cells, 1.0) if cells else 1.0
    train = _TRAIN_ROWS * _TRAIN_STEPS * cells * cells
    flops = 2 * width * (share * rows * (rows - 1) / 2 + rows * cells + train)
    seconds = flops / (_SPEED[kind] * jax.device_count())
    return Plan(rows, cells, share, flops, seconds)


def pairs_above(
    features: np.ndarray,
    threshold: float,
    *,
    cells: int | np.ndarray | None = None,
    probes: int = 16,
    on_cell: Callable[[int, int, Pairs], object] | None = None,
    first_cell: int = 0,
    most_per_row: int = 1000,
) -> Pairs:
    """Finds pairs of a pool [n, D] with a cosine above the threshold, sorted by (a, b).

    Through cells, a pair is missed if neither row has the cell of the other among its nearest. The
    result depends neither on the number of devices nor on where an earlier run stopped.

    Args:
      features: of a float type and any norm, or a memory map of such; rows of zeros pair with none.
        Two copies in fp16 lie in memory, and one on each device.
      threshold: between 0 and 1.
      cells: their number; or centroids [k, D] of the unit rows; 0 compares all pairs; None
        chooses, see `plan_pairs`.
      probes: cells that each row is compared with, its own included.
      on_cell: gets (cell, cells, its pairs) as soon as a cell is done, in the order of cells. Two
        cells may find the same pair.
      first_cell: where to go on after an earlier run; pairs of earlier cells are left out.
      most_per_row: stops at more pairs than this times n, which a threshold far too low finds.

    Raises:
      CurationError: the threshold or a number is out of range, a row is not finite, or there are
        too many pairs.
    """
    rows = _unit_rows(features, threshold)
    if probes < 1:
        raise CurationError(f"probes={probes} compares no cells; use 1 or more, 16 by default")
    if not isinstance(cells, np.ndarray):
        number = plan_pairs(len(rows), rows.shape[1], cells=cells, probes=probes).cells
        if not number:
            order, pool = np.arange(len(rows)), Pool(rows, np.arange(len(rows)))
            return _gather(features, order, pool, _of_all(len(rows)), threshold, most_per_row)
        cells = make_cells(rows, number)
    near = nearest_cells(rows, cells, probes)
    order = np.argsort(near[:, 0], kind="stable")
    pool = Pool(rows, order)
    del rows  # as large as the features
    pieces = _of_cells(near[order], len(cells), first_cell)
    return _gather(features, order, pool, pieces, threshold, most_per_row, on_cell, len(cells))


def exact_pairs_above(features: np.ndarray, threshold: float, *, most_per_row: int = 1000) -> Pairs:
    """Finds all pairs of a pool [n, D] above the threshold; for the rest see `pairs_above`."""
    return pairs_above(features, threshold, cells=0, most_per_row=most_per_row)


def make_cells(rows: np.ndarray, cells: int, *, seed: int = 0) -> np.ndarray:
    """Centroids fp32 [cells, D] of a sample of unit rows [n, D]; cells need no optimum."""
    sample = sample_rows(Blocks(rows), _TRAIN_ROWS * cells, seed)
    return kmeans.fit(sample, cells, _TRAIN_STEPS, seed, empty="split").centroids


def nearest_cells(rows: np.ndarray, centroids: np.ndarray, probes: int) -> np.ndarray:
    """The nearest centroids (L2) of every row [n, D], nearest first: int32 [n, probes]."""
    halves = np.sum(np.square(centroids, dtype=np.float32), axis=1, keepdims=True) / 2
    # The greatest x.c - |c|^2 / 2 belongs to the nearest c.
    bank = Bank(np.concatenate([centroids, -halves], axis=1), np.zeros(len(centroids), np.int32))
    probes = min(probes, len(centroids))
    near = np.empty((len(rows), probes), np.int32)
    for start in range(0, len(rows), 2**16):
        part = np.asarray(rows[start : start + 2**16], np.float32)
        part = np.concatenate([part, np.ones((len(part), 1), np.float32)], axis=1)
        near[start : start + 2**16] = bank.search(part, probes).rows
    return near


def cross_pairs_above(queries: np.ndarray, bank: np.ndarray, threshold: float) -> Pairs:
    """Finds all pairs (a: query, b: row of the bank) with a cosine above the threshold, exactly.

    Args:
      queries: [m, D]. `bank`: [n, D]. Both of any norm.

    Raises:
      CurationError: the threshold is out of range.
      EvaluationError: see `features.search.search`.
    """
    _check(threshold)
    bank, queries = unit_rows(bank, queries)
    searched = Bank(bank, np.zeros(len(bank), np.int32))
    k, left, parts = min(64, len(bank)), np.arange(len(queries)), []
    while len(left):
        found = searched.search(queries[left], k)
        above = found.similarities > threshold
        # Where even the last neighbour lies above, there may be more.
        full = above.all(axis=1) & (k < len(bank))
        query, rank = np.nonzero(above & ~full[:, None])
        chosen = found.rows[query, rank], found.similarities[query, rank]
        parts.append(Pairs(left[query], chosen[0].astype(np.int64), chosen[1]))
        left, k = left[full], min(4 * k, len(bank))
    return _sorted(parts)


def nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the k nearest of the bank, exactly: `features.search.search`."""
    return search(bank, queries, k)


def _check(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise CurationError(
            f"the threshold {threshold} of a cosine is not between 0 and 1; 0.6 is the paper's"
        )


def _unit_rows(features: np.ndarray, threshold: float) -> np.ndarray:
    """fp16 [n, D] of norm 1, in memory."""
    _check(threshold)
    if jax.process_count() > 1:
        raise CurationError(
            "pairs of a pool are searched by one process with all its devices; start one process"
        )
    Blocks(features)  # refuses what is not finite
    rows = np.empty(features.shape, np.float16)
    for start in range(0, len(rows), 2**16):
        rows[start : start + 2**16] = unit(features[start : start + 2**16])
    return rows


def _of_cells(near: np.ndarray, cells: int, first_cell: int) -> Iterator[Piece]:
    """Every cell against the rows that have it among their nearest; rows are sorted by cell."""
    starts = np.searchsorted(near[:, 0], np.arange(cells + 1))
    ends = np.concatenate([[0], np.cumsum(np.bincount(near.ravel(), minlength=cells))])
    visitors = np.argsort(near, axis=None, kind="stable")
    visitors //= near.shape[1]
    for cell in range(first_cell, cells):
        columns = visitors[ends[cell] : ends[cell + 1]].astype(np.int32)
        yield from _cut(cell, range(starts[cell], starts[cell + 1]), columns)


def _of_all(rows: int) -> Iterator[Piece]:
    for group, first in enumerate(range(0, rows, ROWS)):
        here = range(first, min(first + ROWS, rows))
        yield from _cut(group, here, np.arange(first, rows, dtype=np.int32))


def _cut(group: int, rows: range, columns: np.ndarray) -> Iterator[Piece]:
    for first in rows[::ROWS]:
        count = min(ROWS, rows.stop - first)
        for start in range(0, len(columns), COLUMNS):
            yield Piece(group, first, count, columns[start : start + COLUMNS], rows)


def _gather(
    features: np.ndarray,
    order: np.ndarray,
    pool: Pool,
    pieces: Iterable[Piece],
    threshold: float,
    most_per_row: int,
    on_cell: Callable[[int, int, Pairs], object] | None = None,
    cells: int = 0,
) -> Pairs:
    """Runs the join and measures what it finds on the features themselves."""
    parts, count = [], 0
    for cell, positions in rows_near(pool, pieces, threshold):
        pairs = np.sort(order[positions], axis=1)
        parts.append(_measured(features, pairs, threshold))
        count += len(parts[-1].a)
        if count > most_per_row * len(order):
            raise CurationError(
                f"more than {most_per_row} pairs a row lie above the cosine {threshold}, as "
                "unrelated pictures do without whitening; raise the threshold, or calibrate it"
            )
        if on_cell is not None:
            on_cell(cell, cells, parts[-1])
    return _sorted(parts)


def _measured(features: np.ndarray, pairs: np.ndarray, threshold: float) -> Pairs:
    """Cosines in fp64; leaves out pairs that are not above the threshold."""
    parts = []
    for start in range(0, len(pairs), 2**15):
        a, b = pairs[start : start + 2**15].T
        one, other = (unit(features[rows], np.float64) for rows in (a, b))
        cosine = np.einsum("nd,nd->n", one, other).astype(np.float32)
        above = cosine > threshold
        parts.append(Pairs(a[above], b[above], cosine[above]))
    return _sorted(parts)


def _sorted(parts: list[Pairs]) -> Pairs:
    """In the order of (a, b), each pair once."""
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    joined = Pairs(*map(np.concatenate, zip(nothing, *parts, strict=True)))
    order = np.lexsort((joined.b, joined.a))
    joined = Pairs(*(part[order] for part in joined))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(joined.a) != 0) | (np.diff(joined.b) != 0)
    return Pairs(*(part[new] for part in joined))
