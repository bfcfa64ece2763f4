"""Metrics of retrieval: mAP and mP@k of revisited Oxford and Paris, and mAP@k.

The revisited protocol is that of Radenovic et al. 2018. A ranking [m, n] lists, for each query, the
database rows from nearest to farthest.
"""

# DINOv2: no code for retrieval was published, and the paper states neither resolution nor scales.

from collections.abc import Mapping, Sequence

import numpy as np

from dinov2_jax.errors import EvaluationError

PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (what counts as positive, what is removed from the ranking)
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


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
