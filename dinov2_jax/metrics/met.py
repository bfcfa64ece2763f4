"""The scores of Met: recognition of museum exhibits among distractors (Ypsilantis et al. 2021).

A query is given the exhibit of its nearest training pictures and a confidence. GAP is the average
precision of all queries sorted by confidence, in which distractors, queries that show no exhibit
of the training set, can only do harm; GAP- leaves them out, and ACC looks at the exhibits alone.
"""

# DINOv2: the paper names these scores only. The vote and its grid are those of Met's published
# code; that code whitens features by a PCA of the training set first (unless told not to), which
# is not done here, and where its confidences round to 1 their order is left to chance.

from collections.abc import Sequence

import numpy as np

from dinov2_jax.errors import EvaluationError

KS = (1, 2, 3, 5, 7, 10, 15, 20, 50)
TEMPERATURES = (0.01, 0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 50.0, 100.0, 500.0)
DISTRACTOR = -1


def vote(
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
      temperature: the factor.

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
        # Relative to the best, so that nothing overflows and the share of all others stays exact.
        others = np.exp(temperature * (np.delete(scores, best) - scores[best])).sum()
        others += (classes - len(present)) * np.exp(-temperature * scores[best])
        exhibits[row], confidences[row] = present[best], -np.log1p(others)
    return exhibits, confidences


def gap(exhibits: np.ndarray, confidences: np.ndarray, labels: np.ndarray) -> float:
    """Global (micro) average precision in percent; equal confidences stay in the given order.

    Args:
      exhibits, confidences: [m], from `vote`.
      labels: the true exhibits int [m], DISTRACTOR (-1) for queries that show none.

    Returns:
      The sum of the precisions at the correct queries, over the number of queries that are no
      distractors; nan where all are.
    """
    order = np.argsort(-np.asarray(confidences), kind="stable")
    correct = (np.asarray(exhibits) == labels)[order] & (np.asarray(labels)[order] != DISTRACTOR)
    precision = np.cumsum(correct) / np.arange(1, len(order) + 1)
    shown = int(np.sum(np.asarray(labels) != DISTRACTOR))
    return float(100 * np.sum(precision * correct) / shown) if shown else float("nan")


def met_scores(
    exhibits: np.ndarray, confidences: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """ "GAP", "GAP-" and "ACC" in percent; arguments as of `gap`."""
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
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[int, float]:
    """The k and temperature of the greatest GAP on validation queries, the first of equal ones.

    Args:
      similarities, neighbours: [m, at least max(ks)], similarity and exhibit of the nearest
        training pictures; a k beyond them takes all.
      labels: true exhibits of the validation queries [m].
      classes: exhibits in the training set.
    """
    best, chosen = -1.0, (ks[0], temperatures[0])
    for k in ks:
        for temperature in temperatures:
            found = vote(
                similarities[:, :k], neighbours[:, :k], classes=classes, temperature=temperature
            )
            score = gap(*found, labels)
            if score > best:
                best, chosen = score, (k, temperature)
    return chosen
