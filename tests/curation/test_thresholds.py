"""Curves against counts by hand; the threshold chosen, and what is refused."""

import numpy as np
import pytest

from dinov2_jax.curation.balance import pick
from dinov2_jax.curation.edits import EDITS_14
from dinov2_jax.curation.thresholds import choose, curve, fit_half
from dinov2_jax.errors import UserError

NAMES = ("jpeg_30", "crop_70")


def test_a_curve_counts_scores_at_or_above_each_threshold() -> None:
    copies = np.array([[1.0, 0.5], [0.9, 0.2], [0.5, 0.5], [0.75, 0.1]])
    found = curve(copies, np.array([0.5, 0.25, 0.74]), NAMES, np.array([0.25, 0.5, 0.75]))
    np.testing.assert_array_equal(found.recall, [[1, 0.5], [1, 0.5], [0.75, 0]])
    np.testing.assert_allclose(found.linked, [1, 2 / 3, 0])


def test_the_lowest_threshold_with_few_false_edges_is_chosen() -> None:
    rng = np.random.default_rng(0)
    copies = rng.uniform(0.8, 1, (500, 14))
    unrelated = rng.permutation(np.linspace(0, 0.999, 1000))
    found = curve(copies, unrelated)
    assert found.names == tuple(EDITS_14)
    for share in (0.5, 0.3, 0.25):
        threshold = choose(found, share)
        assert (unrelated >= threshold).mean() <= share
        assert (unrelated >= threshold - 0.00501).mean() > share
    assert choose(found, 1.0) == 0


def test_a_descriptor_that_loses_plain_copies_is_refused() -> None:
    copies = np.tile([0.6, 0.9], (20, 1))
    unrelated = np.linspace(0, 0.7, 100)
    found = curve(copies, unrelated, NAMES)
    assert choose(found, 0.2, ["jpeg_30"]) == 0.56
    with pytest.raises(UserError, match=r"0\.0% of the copies by jpeg_30 are found and 95%"):
        choose(found, 0.05, ["jpeg_30"])


def test_unrelated_pictures_that_score_one_are_refused() -> None:
    found = curve(np.ones((4, 2)), np.array([1.0, 1.0, 0.5, 0.5]), NAMES)
    with pytest.raises(UserError, match=r"50\.0% of the pictures score 1 or more"):
        choose(found, 0.01, ["jpeg_30"])


def test_scores_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="no picture"):
        curve(np.zeros((0, 2)), np.zeros(3), NAMES)
    with pytest.raises(UserError, match="NaN"):
        curve(np.full((1, 2), np.nan), np.zeros(3), NAMES)


def test_halves_are_even_also_among_rows_picked_by_the_same_seed() -> None:
    rows = pick(np.arange(50_000), 2000, seed=5)
    half = fit_half(rows, seed=5)
    assert abs(half.sum() - 1000) < 5 * np.sqrt(500)
    np.testing.assert_array_equal(fit_half(rows[::-1], seed=5), half[::-1])
