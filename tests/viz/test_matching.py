"""Mutual nearest patches, and the lines between them."""

import numpy as np
import pytest

from dinov2_jax.viz.matching import Matches, draw_matches, mutual_matches


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 8, 16))


def test_finds_a_permutation(features: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(48)
    shuffled = 3 * features.reshape(48, 16)[order].reshape(4, 12, 16)  # cosine: length is nothing
    found = mutual_matches(features, shuffled)
    assert len(found.first) == 48
    np.testing.assert_array_equal(order[found.second], found.first)
    np.testing.assert_allclose(found.similarity, 1)


def test_finds_a_shift_by_whole_patches(features: np.ndarray) -> None:
    shifted = np.roll(features, (1, 2), axis=(0, 1))
    found = mutual_matches(features, shifted, most=10)
    assert len(found.first) == 10
    row, column = np.divmod(found.first, 8)
    np.testing.assert_array_equal(found.second, (row + 1) % 6 * 8 + (column + 2) % 8)


def test_both_must_be_nearest() -> None:
    first = np.array([[[1.0, 0.0], [0.9, 0.1]]])  # both look at the one patch of the other side
    found = mutual_matches(first, np.array([[[1.0, 0.0]]]))
    assert found.first.tolist() == [0] and found.second.tolist() == [0]


def test_masks_leave_the_background_out(features: np.ndarray) -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    found = mutual_matches(features, features, (mask, ~mask))
    assert mask.ravel()[found.first].all() and not mask.ravel()[found.second].any()
    nothing = mutual_matches(features, features, (mask, np.zeros_like(mask)))
    assert [len(x) for x in nothing] == [0, 0, 0]


def test_most_similar_first_and_apart(features: np.ndarray) -> None:
    noisy = features + 0.3 * np.random.default_rng(2).normal(size=features.shape)
    found = mutual_matches(features, noisy, spacing=3)
    assert (np.diff(found.similarity) <= 0).all()
    best = mutual_matches(features, noisy)
    assert found.first[0] == best.first[0] and len(found.first) < len(best.first)
    for side in (found.first, found.second):
        places = np.stack(np.divmod(side, 8), axis=1)
        gaps = np.abs(places[:, None] - places[None]).max(-1) + 9 * np.eye(len(places))
        assert gaps.min() >= 3


def test_lines_reach_their_patches() -> None:
    left, right = np.zeros((60, 80, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    matches = Matches(np.array([0, 47]), np.array([3, 0]), np.array([1.0, 0.9]))
    drawn = draw_matches(left, right, matches, ((6, 8), (2, 2)))
    assert drawn.shape == (60, 80 + 24 + 40, 3) and not left.any()
    shift = 80 + 24
    ends = [((5, 5), (30, shift + 30)), ((55, 75), (10, shift + 10))]
    for start, end in ends:
        np.testing.assert_array_equal(drawn[start], drawn[end])
        assert drawn[start].max() == 255
    assert (drawn[5, 5] != drawn[55, 75]).any()
    assert (drawn[50, shift + 20] == 255).all()  # white under the lower picture


def test_no_matches_draw_no_lines() -> None:
    picture = np.full((20, 20, 3), 7, np.uint8)
    nothing = Matches(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    drawn = draw_matches(picture, picture, nothing, ((2, 2), (2, 2)))
    np.testing.assert_array_equal(drawn[:, :20], picture)


@pytest.mark.parametrize(
    ("first", "masks", "message"),
    [
        (np.zeros((4, 16)), None, r"shapes \(4, 16\) and \(6, 8, 16\) cannot be matched"),
        (np.zeros((2, 2, 5)), None, "of one width"),
        (np.ones((6, 8, 16)), (np.ones((6, 8)), np.ones((2, 2))), "do not fit features"),
    ],
)
def test_wrong_shapes_are_refused(
    features: np.ndarray, first: np.ndarray, masks: tuple | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mutual_matches(first, features, masks)
