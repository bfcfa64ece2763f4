"""The scores of Met, worked by hand and in slow plain Python."""

import math

import numpy as np
import pytest

from dinov2_jax.features.search import search
from dinov2_jax.metrics.ranking import choose_vote, gap, met_scores, vote_exhibits


def plain_vote(similarities, labels, classes, temperature):
    found = []
    for values, near in zip(similarities, labels, strict=True):
        best = {}
        for value, label in zip(values, near, strict=True):
            best[int(label)] = max(best.get(int(label), 0.0), float(value))
        others = classes - len(best)
        total = sum(math.exp(temperature * s) for s in best.values()) + others
        winner = min(label for label in best if best[label] == max(best.values()))
        found.append((winner, math.exp(temperature * best[winner]) / total))
    exhibits, confidences = zip(*found, strict=True)
    return np.array(exhibits), np.array(confidences)


def plain_gap(exhibits, confidences, labels):
    rows = sorted(range(len(labels)), key=lambda row: -confidences[row])
    total, correct = 0.0, 0
    for place, row in enumerate(rows, start=1):
        if exhibits[row] == labels[row]:
            correct += 1
            total += correct / place
    return 100 * total / sum(label != -1 for label in labels)


def test_vote_by_hand() -> None:
    # The nearest picture of an exhibit counts, not their number; 2 of 4 exhibits are not near.
    exhibits, confidences = vote_exhibits(
        np.array([[0.8, 0.7, 0.6]]), np.array([[7, 3, 3]]), classes=4, temperature=2.0
    )
    assert exhibits.tolist() == [7]
    expected = math.exp(1.6) / (math.exp(1.6) + math.exp(1.4) + 2)
    assert math.exp(confidences[0]) == pytest.approx(expected, rel=1e-14)


def test_scores_below_zero_count_as_zero_and_ties_take_the_lowest_exhibit() -> None:
    exhibits, confidences = vote_exhibits(
        np.array([[-0.1, -0.2], [0.5, 0.5]]),
        np.array([[9, 4], [8, 2]]),
        classes=5,
        temperature=3.0,
    )
    assert exhibits.tolist() == [4, 2]
    assert math.exp(confidences[0]) == pytest.approx(1 / 5)
    expected = math.exp(1.5) / (2 * math.exp(1.5) + 3)
    assert math.exp(confidences[1]) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 20.0, 500.0])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_vote_equals_plain_python(temperature: float, k: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 30) * 100  # identifiers of the museum, not 0, 1, 2, ...
    train = rng.normal(size=(30, 4)) + np.eye(4)[labels // 100 % 4]
    similarities, numbers = search(train, rng.normal(size=(25, 4)), k)
    found = vote_exhibits(similarities, labels[numbers], classes=12, temperature=temperature)
    exhibits, confidences = plain_vote(similarities, labels[numbers], 12, temperature)
    np.testing.assert_array_equal(found[0], exhibits)
    np.testing.assert_allclose(np.exp(found[1]), confidences, rtol=1e-10)


def test_confidences_that_round_to_one_keep_their_order() -> None:
    similarities = np.array([[0.6, 0.3], [0.9, 0.5], [0.8, 0.3]])
    _, logarithms = vote_exhibits(
        similarities, np.array([[1, 2]] * 3), classes=10, temperature=200.0
    )
    assert (np.exp(logarithms) == 1).all()
    # The next exhibit is 0.3, 0.4 and 0.5 away: shares of e^-60, e^-80 and e^-100.
    assert np.argsort(-logarithms).tolist() == [2, 1, 0]


def test_more_exhibits_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 exhibits are near query 0, but classes=1"):
        vote_exhibits(np.ones((1, 2)), np.array([[0, 1]]), classes=1, temperature=1.0)


def test_gap_by_hand() -> None:
    exhibits = np.array([5, 6, 7, 8, 9])
    confidences = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    labels = np.array([5, -1, 7, 1, 9])  # right, distractor, right, wrong, right
    # (1/1 + 2/3 + 3/5) / 4 queries that are no distractors; without distractors (1 + 1 + 3/4) / 4
    found = met_scores(exhibits, confidences, labels)
    assert found["GAP"] == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 4)
    assert found["GAP-"] == pytest.approx(100 * (1 + 1 + 3 / 4) / 4)
    assert found["ACC"] == pytest.approx(75)
    shuffled = [3, 0, 4, 2, 1]
    again = met_scores(exhibits[shuffled], confidences[shuffled], labels[shuffled])
    assert again == pytest.approx(found)


def test_gap_of_equal_confidences_keeps_the_order_of_queries() -> None:
    exhibits, labels = np.array([1, 1, 1]), np.array([2, 1, 1])
    assert gap(exhibits, np.ones(3), labels) == pytest.approx(100 * (1 / 2 + 2 / 3) / 3)


def test_gap_equals_plain_python() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(-1, 5, 400)
    exhibits = np.where(rng.random(400) < 0.6, labels, rng.integers(0, 5, 400))
    exhibits = np.maximum(exhibits, 0)
    confidences = rng.random(400)
    found = gap(exhibits, confidences, labels)
    assert found == pytest.approx(plain_gap(exhibits, confidences, labels), abs=1e-9)
    assert found < met_scores(exhibits, confidences, labels)["GAP-"]


def test_gap_equals_scikit_learn_where_all_queries_show_one_exhibit() -> None:
    # If every query is either right or a distractor, GAP is plain average precision.
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    labels = rng.integers(-1, 2, 100)
    confidences = rng.random(100)
    exhibits = np.maximum(labels, 0)
    expected = 100 * metrics.average_precision_score(labels >= 0, confidences)
    assert gap(exhibits, confidences, labels) == pytest.approx(expected, abs=1e-9)


def test_distractors_only_give_nan_and_no_warning() -> None:
    found = met_scores(np.array([1, 2]), np.array([0.5, 0.6]), np.array([-1, -1]))
    assert all(np.isnan(value) for value in found.values())


def test_the_vote_of_the_greatest_gap_is_chosen() -> None:
    rng = np.random.default_rng(3)
    neighbours = rng.integers(0, 6, (50, 10))
    similarities = -np.sort(-rng.random((50, 10)), axis=1)
    labels = np.where(rng.random(50) < 0.5, neighbours[:, 1], -1)
    ks, temperatures = (1, 3, 99), (0.1, 5.0, 20.0)
    scores = {
        (k, t): plain_gap(*plain_vote(similarities[:, :k], neighbours[:, :k], 6, t), labels)
        for k in ks
        for t in temperatures
    }
    chosen = choose_vote(
        similarities, neighbours, labels, classes=6, ks=ks, temperatures=temperatures
    )
    assert chosen == next(key for key, value in scores.items() if value == max(scores.values()))
    assert len(set(scores.values())) > 3


def test_of_equally_good_votes_the_first_is_chosen() -> None:
    neighbours, similarities = np.array([[4, 4], [7, 7]]), np.array([[0.9, 0.8], [0.7, 0.6]])
    chosen = choose_vote(similarities, neighbours, np.array([4, 7]), classes=2)
    assert chosen == (1, 0.01)
