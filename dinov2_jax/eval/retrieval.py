"""Instance retrieval on frozen features (paper section 7.3, reference-facts 8.5).

Cosine similarity of cls features, exact and in blocks on the device. Scores: mAP and mP@k of the
revisited Oxford and Paris protocol (Radenovic et al. 2018), and mAP@k; those of Met are in `met`.
All take plain arrays; what is called a ranking holds, in row q, the numbers of the database's
pictures from the nearest to query q on.
"""

# DINOv2: no code for retrieval was published, and the paper states neither resolution nor scales.

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.eval.bank import Bank
from dinov2_jax.eval.errors import EvaluationError

PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (what counts as positive, what is removed from the ranking)
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def search(
    database: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    database_block: int = 65536,
    query_block: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of every query by cosine similarity, nearest first, equal ones by number.

    Args:
      database [n, D], queries [m, D]: features of any length (norm).
      k: a k beyond n gives all n.
      database_block, query_block: rows held on the device at once.

    Returns:
      similarities fp32 [m, min(k, n)] and numbers int32 [m, min(k, n)].

    Raises:
      EvaluationError: for an empty side, another width, values that are not finite, or k below 1.
    """
    if k < 1:
        raise EvaluationError(f"k={k} finds nothing; the least is 1")
    database, queries = _unit_rows(database, queries)
    bank = Bank(database, np.arange(len(database)), block=database_block)
    found = bank.search(queries, min(k, len(database)), query_block=query_block)
    return found.similarities, found.rows


def rank_all(
    database: np.ndarray,
    queries: np.ndarray,
    *,
    database_block: int = 65536,
    query_block: int = 64,
) -> np.ndarray:
    """The whole database sorted for every query, int32 [m, n]; equal ones by number.

    One block of queries with its n similarities is on the device at once, beside one block of the
    database: 64 queries of a million distractors take 0.25 GB, and as much for their numbers.

    Args, Raises: as `search`.
    """
    database, queries = _unit_rows(database, queries)
    found = []
    for rows in _blocks(queries, query_block):
        parts = [_similarity(rows, block) for block in _blocks(database, database_block)]
        similarity = jnp.concatenate(parts, axis=1)[:, : len(database)]
        found.append(np.asarray(_sort(similarity)))
    return np.concatenate(found)[: len(queries)]


def faiss_search(
    database: np.ndarray, queries: np.ndarray, k: int, *, factory: str = "Flat"
) -> tuple[np.ndarray, np.ndarray]:
    """`search` by an index of faiss, on the host: "Flat" is exact, "IVF1024,Flat" is not.

    Args:
      factory: the description that faiss.index_factory takes; trained on the database.

    Returns:
      As `search`; number -1 where an inexact index found fewer than k.

    Raises:
      ImportError: without faiss.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "a search by an index of faiss needs a package; pip install faiss-cpu"
        ) from error
    database, queries = _unit_rows(database, queries)
    index = faiss.index_factory(database.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(database)
    index.add(database)
    similarities, numbers = index.search(queries, min(k, len(database)))
    return similarities, numbers.astype(np.int32)


def _unit_rows(database: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sides = {
        "database": np.asarray(database, np.float32),
        "queries": np.asarray(queries, np.float32),
    }
    for name, rows in sides.items():
        if not len(rows):
            raise EvaluationError(f"the {name} of a retrieval is empty; check its list of pictures")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise EvaluationError(
                f"row {bad[0]} of the {name} is not finite ({len(bad)} such rows), as of a picture "
                "that could not be read; repair or leave out these pictures"
            )
    widths = [rows.shape[1] for rows in sides.values()]
    if widths[0] != widths[1]:
        raise EvaluationError(
            f"the database has {widths[0]} features a picture, the queries {widths[1]}"
        )
    database, queries = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for rows in sides.values()
    )
    return database, queries


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Blocks of one length, so that one program serves all; the last is filled with zeros."""
    size = min(size, len(rows))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        yield np.pad(block, [(0, size - len(block)), (0, 0)])


@jax.jit
def _similarity(queries: Array, block: Array) -> Array:
    similarity = jnp.einsum("qd,bd->qb", queries, block, precision="highest")
    return jnp.where(similarity == 0, 0.0, similarity)  # -0.0 would sort behind 0.0


@jax.jit
def _sort(similarity: Array) -> Array:
    return jnp.argsort(-similarity, axis=1, stable=True).astype(jnp.int32)


def multi_scale_features(by_scale: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of L2-normalised features [n, D] of several scales, L2-normalised again."""
    return _unit(np.mean([_unit(features) for features in by_scale], axis=0))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def average_precision(
    ranking: np.ndarray,
    positives: np.ndarray | Sequence[int],
    junk: np.ndarray | Sequence[int] = (),
    ks: Sequence[int] = (),
) -> tuple[float, np.ndarray]:
    """Average precision of one query by the trapezoid rule, and its precision at each k.

    Junk is taken out of the ranking first. Each positive adds the mean of the precisions before
    and at its place, over the number of positives; a positive that is not ranked adds nothing.
    Precision at k looks at no more places than the last ranked positive needs: this is how the
    revisited protocol defines it.

    Args:
      ranking: numbers [n], nearest first.
      positives, junk: numbers.
      ks: of the precisions.

    Returns:
      A share of 1 and shares [len(ks)]; nan without positives.
    """
    positives, junk = np.asarray(positives, np.int64), np.asarray(junk, np.int64)
    if not positives.size:
        return float("nan"), np.full(len(ks), np.nan)
    is_junk = np.isin(ranking, junk)
    places = np.flatnonzero(np.isin(ranking, positives))
    places = places - np.cumsum(is_junk)[places] + is_junk[places]  # 0 is the nearest
    order = np.arange(len(places))
    before = np.where(places == 0, 1.0, order / np.maximum(places, 1))
    at = (order + 1) / (places + 1)
    area = float(np.sum(before + at) / 2 / positives.size)
    if not places.size:
        return area, np.zeros(len(ks))
    within = [min(int(places[-1]) + 1, k) for k in ks]
    return area, np.array([np.sum(places < k) / k for k in within])


def revisited_map(
    ranking: np.ndarray,
    ground_truth: Sequence[Mapping[str, np.ndarray]],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float]]:
    """mAP and mP@k of the revisited Oxford and Paris protocol, in percent.

    Args:
      ranking: int [m, n], the whole database of every query.
      ground_truth: for every query the numbers called "easy", "hard" and "junk".
      ks: of the precisions.

    Returns:
      For "easy", "medium" and "hard": "mAP", "mP@1", ...; means over the queries that have
      positives, nan where none has.

    Raises:
      EvaluationError: when the numbers of queries or of pictures do not agree.
    """
    kinds = ("easy", "hard", "junk")
    named = [np.concatenate([_numbers(truth[kind]) for kind in kinds]) for truth in ground_truth]
    _check_ranking(ranking, named)
    lost = max((int(numbers.max()) for numbers in named if numbers.size), default=0)
    if lost >= ranking.shape[1]:
        raise EvaluationError(
            f"the ground truth names picture {lost}, but {ranking.shape[1]} are ranked; rank the "
            "whole database, in the order of its list"
        )
    names = ["mAP", *(f"mP@{k}" for k in ks)]
    found = {}
    for protocol, (wanted, removed) in PROTOCOLS.items():
        rows = []
        for order, truth in zip(ranking, ground_truth, strict=True):
            positives, junk = (
                np.concatenate([_numbers(truth[name]) for name in group])
                for group in (wanted, removed)
            )
            area, precisions = average_precision(order, positives, junk, ks)
            rows.append([area, *precisions])
        means = _mean_of_finite(np.reshape(rows, (len(ranking), len(names))))
        found[protocol] = dict(zip(names, map(float, 100 * means), strict=True))
    return found


def map_at_k(ranking: np.ndarray, positives: Sequence[np.ndarray], k: int) -> float:
    """mAP@k in percent: precision at each positive among the first k, over min(k, positives).

    With one positive a query, as in AmsterTime, this is the mean of 1 / rank, or of 0 behind k.
    Queries without positives are left out; nan where all are.

    Args:
      ranking: int [m, at least k], or fewer where the database is smaller.
      positives: numbers for every query.

    Raises:
      EvaluationError: when the numbers of queries do not agree, or k is below 1.
    """
    if k < 1:
        raise EvaluationError(f"k={k} looks at nothing; the least is 1")
    _check_ranking(ranking, positives)
    areas = []
    for order, wanted in zip(ranking[:, :k], positives, strict=True):
        hit = np.isin(order, wanted)
        precision = np.cumsum(hit) / np.arange(1, len(order) + 1)
        total = min(k, len(wanted))
        areas.append(np.sum(precision * hit) / total if total else np.nan)
    return float(100 * _mean_of_finite(np.array(areas)))


def _check_ranking(ranking: np.ndarray, truth: Sequence[np.ndarray]) -> None:
    if len(ranking) != len(truth):
        raise EvaluationError(
            f"the ranking is of {len(ranking)} queries, the ground truth of {len(truth)}; "
            "give both in the same order of queries"
        )
    for query, numbers in enumerate(map(_numbers, truth)):
        if numbers.size and (numbers.min() < 0):
            raise EvaluationError(
                f"query {query} names picture {numbers.min()}; numbers start at 0"
            )


def _numbers(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.int64).reshape(-1)


def _mean_of_finite(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis without nan, and nan without a value (no warning)."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count, np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
