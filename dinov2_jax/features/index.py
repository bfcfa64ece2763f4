"""Nearest-neighbour search by an index of faiss, which searches as much as its recall needs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.search import search, unit_rows

# Queries, spread over all, whose exact neighbours are computed to measure the recall.
SAMPLE = 256

# How far an index looks: the parameters of faiss and their greatest values, None for all cells. A
# new index of faiss searches one cell, which loses most neighbours that are not among the first.
_SEARCHED = {"nprobe": None, "efSearch": 4096, "quantizer_efSearch": 4096, "k_factor_rf": 64}


class Indexed(NamedTuple):
    """What `faiss_search` returns.

    Attributes:
      similarities: fp32 [m, k], nearest first, as the index stores the features.
      rows: int32 [m, k], of the database.
      recall: share of the k nearest that a sample of the queries finds, 0..1.
      searched: the parameters of the search, such as {"nprobe": 16} cells.
    """

    similarities: np.ndarray
    rows: np.ndarray
    recall: float
    searched: dict[str, int]


def faiss_search(
    database: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    factory: str = "Flat",
    least_recall: float = 0.99,
) -> Indexed:
    """Searches like `features.search.search`, with a faiss index on the host.

    The index looks at twice as many cells (or nodes of its graph) until it finds `least_recall` of
    the exact neighbours of `SAMPLE` queries, and k rows for every query.

    Args:
      database: [n, D], features of any norm; the index is trained on them.
      queries: [m, D].
      k: at least 1; more than n means n.
      factory: a description for faiss.index_factory, such as "Flat" (exact) or "IVF1024,Flat"
        (approximate).
      least_recall: 0..1; neighbours that are as near as the k-th nearest count as found.

    Raises:
      EvaluationError: as `search`; faiss refuses the description or the data; or the index misses
        the recall however much it searches.
      ImportError: faiss is not installed.
    """
    faiss = _faiss()
    database, queries = unit_rows(database, queries)
    k = min(k, len(database))
    rows = np.unique(np.linspace(0, len(queries) - 1, min(SAMPLE, len(queries))).astype(int))
    sample = queries[rows]
    farthest = search(database, sample, k)[0][:, -1:]
    recall, index = 0.0, _build(faiss, database, factory)
    for searched in _efforts(faiss, index, len(database)):
        recall = _recall(index.search(sample, k)[1], database, sample, farthest)
        if recall >= least_recall:
            similarities, rows = index.search(queries, k)
            if (rows >= 0).all():
                return Indexed(similarities, rows.astype(np.int32), recall, searched)
    raise EvaluationError(
        f"the index {factory!r} finds {100 * recall:.1f} % of the {k} nearest of {len(sample)} "
        f"queries however much it searches, and the least is {100 * least_recall:g} %; use an "
        'index of whole features, such as "IVF1024,Flat" or "Flat", or accept less with '
        "--config.retrieval.faiss_recall"
    )


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "a search by an index of faiss needs a package; pip install faiss-cpu"
        ) from error
    return faiss


def _build(faiss: Any, database: np.ndarray, factory: str) -> Any:
    try:
        index = faiss.index_factory(database.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(database)
        index.add(database)
    except RuntimeError as error:  # of any mistake, with the place in faiss's source before it
        why = " ".join(str(error).split()).rpartition("Error: ")[2].rpartition(".cpp:")[2]
        raise EvaluationError(
            f"faiss makes no index {factory!r} of {len(database):,} rows of {database.shape[1]} "
            f'numbers ({why}); use another, such as "IVF64,Flat", or "Flat"'
        ) from error
    return index


def _efforts(faiss: Any, index: Any, rows: int) -> Iterator[dict[str, int]]:
    """Sets an index to search ever more, and yields its parameters each time."""
    space = faiss.ParameterSpace()
    space.initialize(index)
    found = space.parameter_ranges
    names = {found.at(place).name for place in range(found.size())}
    cells = faiss.extract_index_ivf(index).nlist if "nprobe" in names else 0
    most = {name: limit or cells for name, limit in _SEARCHED.items() if name in names}
    effort = 1
    while True:
        searched = {name: min(effort, limit, rows) for name, limit in most.items()}
        for name, value in searched.items():
            space.set_index_parameter(index, name, value)
        yield searched
        if effort >= max(most.values(), default=0):
            return
        effort *= 2


def _recall(
    rows: np.ndarray, database: np.ndarray, queries: np.ndarray, farthest: np.ndarray
) -> float:
    """The share of rows [m, k] that are as near as the k-th nearest; equals may be exchanged."""
    near = np.einsum("qd,qkd->qk", queries, database[np.maximum(rows, 0)])
    return float(((rows >= 0) & (near >= farthest - 1e-6)).mean())
