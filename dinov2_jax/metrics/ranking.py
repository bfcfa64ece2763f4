"""Metrics of retrieval in percent: revisited mAP and mP@k, mAP@k, and the scores of Met.

The revisited protocol is that of Radenovic et al. 2018. A ranking [m, n] lists, for each query, the
database rows from nearest to farthest.
"""

# DINOv2: no code for retrieval was published, and the paper states neither resolution nor scales.
# For Met it only names the scores (Ypsilantis et al. 2021). The vote and its grid are those of
# Met's published code. That code also whitens features by a PCA of the training set (unless told
# not to), which is not done here, and leaves the order of confidences that round to 1 to chance.

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from dinov2_jax.errors import EvaluationError

# What counts as positive; the other kinds are removed from the ranking.
REVISITED = {"easy": ("easy",), "medium": ("easy", "hard"), "hard": ("hard",)}
_KINDS = ("easy", "hard", "junk")

# Met: the grid of the vote, and the label of queries that show no exhibit of the training set.
MET_KS = (1, 2, 3, 5, 7, 10, 15, 20, 50)
MET_TEMPERATURES = (0.01, 0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 50.0, 100.0, 500.0)
DISTRACTOR = -1


def trapezoid_precision(
    ranking: np.ndarray,
    positives: np.ndarray | Sequence[int],
    junk: np.ndarray | Sequence[int] = (),
    ks: Sequence[int] = (),
) -> tuple[float, np.ndarray]:
    """Average precision of one query by the trapezoid rule, and its precision at each k.

    Junk is removed from the ranking [n] of database rows, nearest first. Each positive adds the
    mean of the precisions before and at its place, divided by the number of positives; a positive
    that is not ranked adds nothing. As the revisited protocol defines it, precision at k uses
    min(k, place of the last ranked positive) places.

    Returns:
      The average precision and the precisions [len(ks)] as shares, 0..1; nan without positives.
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
      ranking: int [m, n], the whole database for every query.
      ground_truth: for every query the database rows that are "easy", "hard" and "junk".

    Returns:
      For "easy", "medium" and "hard": "mAP", "mP@1", ...; means over the queries that have
      positives, nan where none has.

    Raises:
      EvaluationError: the numbers of queries or pictures do not agree.
    """
    named = [np.concatenate([truth[kind] for kind in _KINDS]) for truth in ground_truth]
    _check_ranking(ranking, named)
    lost = max((np.max(rows, initial=0) for rows in named), default=0)
    if lost >= ranking.shape[1]:
        raise EvaluationError(
            f"the ground truth names picture {lost}, but {ranking.shape[1]} are ranked; rank the "
            "whole database, in the order of its list"
        )
    names = ["mAP", *(f"mP@{k}" for k in ks)]
    results = {}
    for protocol, wanted in REVISITED.items():
        rows = []
        for order, truth in zip(ranking, ground_truth, strict=True):
            positives = np.concatenate([truth[kind] for kind in wanted])
            junk = np.concatenate([truth[kind] for kind in _KINDS if kind not in wanted])
            area, precisions = trapezoid_precision(order, positives, junk, ks)
            rows.append([area, *precisions])
        means = _mean_of_finite(np.reshape(rows, (len(ranking), len(names))))
        results[protocol] = dict(zip(names, map(float, 100 * means), strict=True))
    return results


def map_at_k(ranking: np.ndarray, positives: Sequence[np.ndarray], k: int) -> float:
    """mAP@k in percent: precision at each positive among the first k, over min(k, positives).

    With one positive a query, as in AmsterTime, this is the mean of 1 / rank, 0 beyond rank k.
    Queries without positives are left out; nan if no query has one.

    Args:
      ranking: int [m, at least k], or fewer columns where the database is smaller.
      positives: database rows for every query.

    Raises:
      EvaluationError: the numbers of queries do not agree, or k is below 1.
    """
    if k < 1:
        raise EvaluationError(f"k={k} is below 1; use a k of at least 1")
    _check_ranking(ranking, positives)
    areas = []
    for order, wanted in zip(ranking[:, :k], positives, strict=True):
        hit = np.isin(order, wanted)
        precision = np.cumsum(hit) / np.arange(1, len(order) + 1)
        total = min(k, len(wanted))
        areas.append(np.sum(precision * hit) / total if total else np.nan)
    return float(100 * _mean_of_finite(np.array(areas)))


# ------------------------------------------------------------------------------------- Met
def vote_exhibits(
    similarities: np.ndarray, labels: np.ndarray, *, classes: int, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Exhibit and confidence of every query from its k nearest training pictures.

    An exhibit scores by its nearest picture, at least 0; those without a picture among the k score
    0. The confidence is the softmax of temperature * score over all exhibits of the training set
    (a temperature that multiplies: large ones sharpen); its logarithm is returned, because at
    temperature 100 confidences that differ are 1 in double precision, and GAP needs their order.

    Args:
      similarities: [m, k], from `dinov2_jax.features.search.search`.
      labels: exhibits of these pictures, int [m, k].
      classes: exhibits in the training set.

    Returns:
      Exhibits int [m] (the lowest of equal ones) and logarithms of confidences [m].

    Raises:
      EvaluationError: when the neighbours of one query show more exhibits than `classes`.
    """
    exhibits, confidences = np.zeros(len(labels), np.int64), np.zeros(len(labels))
    for row, (near, values) in enumerate(zip(labels, similarities, strict=True)):
        present, place = np.unique(near, return_inverse=True)
        if len(present) > classes:
            raise EvaluationError(
                f"{len(present)} exhibits are near query {row}, but classes={classes}"
            )
        scores = np.zeros(len(present))
        np.maximum.at(scores, place, values)
        best = int(scores.argmax())
        # Relative to the best score, so that nothing overflows and small shares stay exact.
        others = np.exp(temperature * (np.delete(scores, best) - scores[best])).sum()
        others += (classes - len(present)) * np.exp(-temperature * scores[best])
        exhibits[row], confidences[row] = present[best], -np.log1p(others)
    return exhibits, confidences


def gap(exhibits: np.ndarray, confidences: np.ndarray, labels: np.ndarray) -> float:
    """Global (micro) average precision, GAP, in percent.

    The sum of the precisions at the correct queries, sorted by confidence (equal ones keep the
    given order), over the number of queries that are no distractors; nan where all are.
    Distractors, queries that show no exhibit of the training set, can only lower it.

    Args:
      exhibits, confidences: [m], from `vote_exhibits`.
      labels: the true exhibits int [m], DISTRACTOR (-1) for queries that show none.
    """
    shown = np.asarray(labels) != DISTRACTOR
    order = np.argsort(-np.asarray(confidences), kind="stable")
    correct = ((np.asarray(exhibits) == labels) & shown)[order]
    precision = np.cumsum(correct) / np.arange(1, len(order) + 1)
    return float(100 * np.sum(precision * correct) / shown.sum()) if shown.any() else float("nan")


def met_scores(
    exhibits: np.ndarray, confidences: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """ "GAP", "GAP-" (without distractors) and "ACC" (exhibits alone), percent; see `gap`."""
    shown = np.asarray(labels) != DISTRACTOR
    right = np.asarray(exhibits)[shown] == np.asarray(labels)[shown]
    return {
        "GAP": gap(exhibits, confidences, labels),
        "GAP-": gap(exhibits[shown], confidences[shown], labels[shown]),
        "ACC": float(100 * right.mean()) if right.size else float("nan"),
    }


def choose_vote(
    similarities: np.ndarray,
    neighbours: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    ks: Sequence[int] = MET_KS,
    temperatures: Sequence[float] = MET_TEMPERATURES,
) -> tuple[int, float]:
    """Met: k and temperature with the greatest GAP on validation queries, the first of equal ones.

    Args:
      similarities, neighbours: [m, at least max(ks)], similarity and exhibit of the nearest
        training pictures; a k beyond them takes all.
      labels: true exhibits of the validation queries [m].
      classes: exhibits in the training set.
    """

    def score(vote: tuple[int, float]) -> float:
        near = similarities[:, : vote[0]], neighbours[:, : vote[0]]
        return gap(*vote_exhibits(*near, classes=classes, temperature=vote[1]), labels)

    return max(itertools.product(ks, temperatures), key=score)


def _check_ranking(ranking: np.ndarray, truth: Sequence[np.ndarray]) -> None:
    if len(ranking) != len(truth):
        raise EvaluationError(
            f"the ranking is of {len(ranking)} queries, the ground truth of {len(truth)}; "
            "give both in the same order of queries"
        )
    for query, rows in enumerate(truth):
        lowest = np.min(rows, initial=0)
        if lowest < 0:
            raise EvaluationError(f"query {query} names picture {lowest}; numbers start at 0")


def _mean_of_finite(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis without nan, and nan without a value (no warning)."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count, np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
