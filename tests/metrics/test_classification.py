"""Metrics against scikit-learn and against their formulas by hand."""

import numpy as np
import pytest
from sklearn import metrics as judge

from dinov2_jax.metrics.classification import (
    ALEXNET_ERRORS,
    class_accuracies,
    corruption_errors,
    eleven_point_precision,
    mean_average_precision,
    mean_per_class_accuracy,
    real_accuracy,
    top_accuracy,
)


def draw(rows=200, classes=9, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    scores = rng.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[labels]
    return scores, labels


# ---------------------------------------------------------------------------------- one label
@pytest.mark.parametrize("top", [1, 3, 5])
def test_top_accuracy_equals_scikit_learn(top):
    scores, labels = draw()
    expected = 100 * judge.top_k_accuracy_score(labels, scores, k=top, labels=np.arange(9))
    assert 20 < expected < 99
    assert top_accuracy(scores, labels, top) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("top", [1, 2, 5])
def test_ties_go_to_the_lower_class(top):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 3, (300, 6)).astype(np.float32)  # nearly every row has ties
    labels = rng.integers(0, 6, 300)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    expected = 100 * np.mean([y in row for y, row in zip(labels, order, strict=True)])
    assert top_accuracy(scores, labels, top) == pytest.approx(expected, abs=1e-9)
    equal = np.zeros((6, 6))
    assert top_accuracy(equal, np.arange(6), top) == pytest.approx(100 * top / 6)


def test_fewer_classes_than_top_is_everything_but_foreign_labels():
    scores, labels = draw(classes=3)
    assert top_accuracy(scores, labels, 5) == 100
    labels[:50] = 3
    labels[50:60] = -1
    assert top_accuracy(scores, labels, 5) == 70


def test_scores_of_nan_are_never_right():
    scores = np.array([[np.nan, 1.0], [0.0, np.nan], [np.nan, np.nan]])
    assert top_accuracy(scores, np.array([0, 0, 0]), 1) == pytest.approx(100 / 3)


def test_mean_per_class_equals_balanced_accuracy():
    scores, labels = draw(seed=2)
    labels[labels == 4] = 5  # class 4 is empty, and still predicted
    predicted = scores.argmax(axis=1)
    assert (predicted == 4).any()
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = 100 * judge.balanced_accuracy_score(labels, predicted)
    assert mean_per_class_accuracy(scores, labels) == pytest.approx(expected, abs=1e-9)
    assert abs(expected - top_accuracy(scores, labels, 1)) > 0.1  # macro is not micro
    each = class_accuracies(scores, labels)
    recall = judge.recall_score(labels, predicted, average=None, zero_division=np.nan)
    np.testing.assert_allclose(each, 100 * recall)
    assert np.isnan(each[4])


def test_classes_beyond_the_scores_and_rows_without_class():
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = np.array([0, 2, 1, -1])
    np.testing.assert_array_equal(
        class_accuracies(scores, labels, classes=4), [100, 100, 0, np.nan]
    )
    assert mean_per_class_accuracy(scores, labels, classes=4) == pytest.approx(200 / 3)
    assert np.isnan(mean_per_class_accuracy(scores, np.full(4, -1)))
    with pytest.raises(ValueError, match="label 2 does not fit 2 classes"):
        class_accuracies(scores, labels)


@pytest.mark.parametrize("metric", [top_accuracy, class_accuracies, mean_per_class_accuracy])
def test_no_rows_and_wrong_length_are_refused(metric):
    scores, labels = draw(10)
    with pytest.raises(ValueError, match=r"\(0,\) for 0 rows.*at least one row"):
        metric(scores[:0], labels[:0], 1)
    with pytest.raises(ValueError, match=r"\(9,\) for 10 rows"):
        metric(scores, labels[:9], 1)


# --------------------------------------------------------------------------------------- ReaL
@pytest.mark.parametrize("top", [1, 5])
def test_real_accuracy_is_any_of_the_labels(top):
    scores, _ = draw(seed=3)
    rng = np.random.default_rng(4)
    labels = np.full((200, 4), -1)
    for row in labels:
        count = rng.integers(0, 5)
        row[:count] = rng.permutation(9)[:count]
    expected = []
    for row, own in zip(scores, labels, strict=True):
        valid = {y for y in own if y >= 0}
        if valid:
            expected.append(bool(valid & set(np.argsort(-row)[:top])))
    assert len(expected) < 200
    assert real_accuracy(scores, labels, top) == pytest.approx(100 * np.mean(expected), abs=1e-9)


def test_real_accuracy_of_one_label_is_accuracy_and_padding_may_stand_anywhere():
    scores, labels = draw(seed=5)
    padded = np.stack([np.full(200, -1), labels, np.full(200, -1)], axis=1)
    assert real_accuracy(scores, padded) == top_accuracy(scores, labels, 1)


def test_real_accuracy_without_labels_is_refused():
    scores, labels = draw(5)
    with pytest.raises(ValueError, match="no image has a ReaL label"):
        real_accuracy(scores, np.full((5, 2), -1))
    with pytest.raises(ValueError, match=r"shape \(5,\) for 5 images"):
        real_accuracy(scores, labels)


# ---------------------------------------------------------------------------------------- mAP
def eleven_points(scores, labels):
    """The devkit's loop (VOCevalcls.m): sort, cumulate, greatest precision for each recall."""
    keep = labels != -1
    order = sorted(np.flatnonzero(keep), key=lambda i: -scores[i])  # stable
    positives = int((labels == 1).sum())
    found, points = 0, []
    for rank, i in enumerate(order, 1):
        found += labels[i] == 1
        points.append((found, found / rank))
    best = [max((p for f, p in points if 10 * f >= t * positives), default=0) for t in range(11)]
    return 100 * sum(best) / 11


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("positives", [1, 3, 10, 37])
def test_average_precision_equals_the_formula(positives, ties):
    rng = np.random.default_rng(positives)
    labels = rng.choice([0, -1], 120, p=[0.8, 0.2])
    labels[rng.permutation(120)[:positives]] = 1
    scores = rng.normal(size=120) + (labels == 1)
    scores = np.round(scores) if ties else scores
    expected = eleven_points(scores, labels)
    assert 0 < expected < 100
    assert eleven_point_precision(scores, labels) == pytest.approx(expected, abs=1e-9)


def test_average_precision_worked_by_hand():
    # Ranks of the positives 1 and 3 of 4: recall 0 to 0.5 at precision 1, 0.6 to 1 at 2/3.
    scores, labels = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1, 0, 1, 0])
    assert eleven_point_precision(scores, labels) == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    # An ignored row between them takes no rank.
    labels[1] = -1
    assert eleven_point_precision(scores, labels) == 100
    assert np.isnan(eleven_point_precision(scores, np.array([0, -1, 0, 0])))


def test_mean_average_precision_leaves_out_classes_without_positives():
    scores, labels = draw(60, 4, seed=6)
    several = (np.eye(4, dtype=int) + np.roll(np.eye(4, dtype=int), 1, axis=1))[labels]
    several[:, 2] = 0
    mean, each = mean_average_precision(scores, several)
    expected = [eleven_points(scores[:, k], several[:, k]) for k in (0, 1, 3)]
    np.testing.assert_allclose(each, [*expected[:2], np.nan, expected[2]])
    assert mean == pytest.approx(np.mean(expected))
    assert np.isnan(mean_average_precision(scores, np.zeros((60, 4), int))[0])
    # Many points of recall make it scikit-learn's area under the curve, up to interpolation.
    area = judge.average_precision_score(several[:, 0], scores[:, 0])
    assert abs(each[0] - 100 * area) < 8


def test_average_precision_refuses_other_labels():
    with pytest.raises(ValueError, match="from 0 to 2 for scores"):
        eleven_point_precision(np.zeros(3), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r"shape \(3, 2\).*one label"):
        mean_average_precision(np.zeros((3, 2)), np.zeros((3, 1), int))


# ------------------------------------------------------------------------------------ ImageNet-C
def test_mce_by_hand():
    rng = np.random.default_rng(7)
    errors = {name: rng.uniform(10, 90, 5) for name in ALEXNET_ERRORS}
    found = corruption_errors(errors)
    # The paper normalises sums over the five severities; AlexNet's sum is five times its mean.
    ratios = [100 * sum(errors[n]) / (5 * ALEXNET_ERRORS[n]) for n in ALEXNET_ERRORS]
    assert found["mCE"] == pytest.approx(sum(ratios) / 15)
    assert found["mean error"] == pytest.approx(sum(sum(e) for e in errors.values()) / 75)
    assert found["fog"] == pytest.approx(100 * errors["fog"].mean() / 81.9324)
    assert len(found) == 17


def test_mce_of_alexnet_is_100():
    found = corruption_errors({name: np.full(5, e) for name, e in ALEXNET_ERRORS.items()})
    assert found["mCE"] == pytest.approx(100)
    # The whole per cents of the paper's table.
    rounded = [89, 89, 92, 82, 83, 79, 80, 87, 83, 82, 56, 85, 65, 72, 61]
    assert [round(e) for e in ALEXNET_ERRORS.values()] == rounded


def test_mce_refuses_missing_parts():
    errors = {name: np.full(5, 50.0) for name in ALEXNET_ERRORS}
    with pytest.raises(ValueError, match=r"missing \['fog'\], unknown \['spatter'\]"):
        corruption_errors({n: e for n, e in errors.items() if n != "fog"} | {"spatter": [1] * 5})
    with pytest.raises(ValueError, match=r"errors of fog have shape \(4,\)"):
        corruption_errors(errors | {"fog": np.ones(4)})
