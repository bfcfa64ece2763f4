"""Mask statistics and static slots against the measured values of the reference."""

import numpy as np
import pytest

from dinov2_jax.data import masking
from dinov2_jax.data.masking import sample_mask, sample_masks, slots_of, upperbound

RATIO = (0.1, 0.5)


@pytest.mark.parametrize(
    ("patches", "group_size", "slots"),
    [
        *((256, 12, 967), (256, 32, 2496), (256, 64, 4941)),
        *((196, 12, 739), (196, 32, 1906), (196, 64, 3771)),
    ],
)
def test_upperbound_is_the_references(patches: int, group_size: int, slots: int) -> None:
    assert upperbound(group_size, patches, 0.5, RATIO) == slots


def test_fill_of_a_mask() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(26, 129, 1500).tolist()
    filled = np.array([sample_mask(rng, (16, 16), target).sum() for target in targets])
    share = filled / targets
    assert share.max() <= 1
    assert 0.994 <= share.mean() <= 1
    assert 0.85 <= (share == 1).mean() <= 0.95


def test_target_zero_is_empty() -> None:
    assert not sample_mask(np.random.default_rng(0), (16, 16), 0).any()


def test_shape_of_the_first_block() -> None:
    """Aspects reach and respect 0.3 .. 1/0.3 up to the rounding of the sides; never a full side."""
    rng = np.random.default_rng(0)
    aspects, largest = [], 0
    for _ in range(3000):
        mask = np.zeros((40, 30), bool)
        added = masking._add_block(rng, mask, 200)
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert added == mask.sum() == rows * columns  # one full rectangle
        assert rows < 40
        assert columns < 30
        area = rows * columns
        if area >= 100:
            aspects.append(rows / columns)
        largest = max(largest, area)
    assert largest <= 200
    log_aspects = np.log(aspects)
    bound = np.log(1 / 0.3)
    assert bound < np.abs(log_aspects).max() + 0.1
    assert np.abs(log_aspects).max() < bound + 0.15
    assert abs(log_aspects.mean()) < 0.05
    assert log_aspects.std() == pytest.approx(2 * bound / 12**0.5, rel=0.05)  # log-uniform


def test_a_block_is_at_most_half_the_grid() -> None:
    rng = np.random.default_rng(0)
    rooms = []
    original = masking._add_block

    def spy(rng: np.random.Generator, mask: np.ndarray, room: int) -> int:
        rooms.append(room)
        return original(rng, mask, room)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "_add_block", spy)
        sample_mask(rng, (37, 37), 1000)
    assert rooms[0] == 666  # 518 px at patch 14: 37 // 2 * 37


def test_group_of_masks() -> None:
    rng = np.random.default_rng(0)
    slots = slots_of(upperbound(32, 256, 0.5, RATIO))
    assert slots % 8 == 0
    used = []
    for _ in range(10):
        masks, indices, weights = sample_masks(rng, 32, (16, 16), 0.5, RATIO)
        assert masks.shape == (32, 2, 256)
        assert masks.dtype == bool
        assert indices.shape == weights.shape == (slots,)
        assert (indices.dtype, weights.dtype) == (np.int32, np.float32)
        counts = masks.sum(2).reshape(-1)
        assert (counts > 0).sum() == 32  # int(64 * 0.5) crops
        flat = np.flatnonzero(masks)
        used.append(len(flat))
        np.testing.assert_array_equal(indices[: len(flat)], flat)
        np.testing.assert_allclose(weights[: len(flat)], 1 / counts[flat // 256], rtol=1e-7)
        assert not indices[len(flat) :].any()
        assert not weights[len(flat) :].any()
        assert weights.sum() == pytest.approx(32, rel=1e-5)
    assert np.mean(used) == pytest.approx(2436.8, rel=0.01)  # measured on the reference


def test_mask_ratios_are_spread_evenly() -> None:
    rng = np.random.default_rng(0)
    masks, _, _ = sample_masks(rng, 64, (16, 16), 0.5, RATIO)
    counts = np.sort(masks.sum(2).reshape(-1))[64:]
    edges = np.linspace(0.1, 0.5, 65) * 256
    assert (counts <= edges[1:]).all()
    assert (counts >= edges[:-1] - 1).mean() > 0.8


def test_both_crops_one_or_none_are_masked() -> None:
    rng = np.random.default_rng(0)
    kinds = np.zeros(3, int)
    for _ in range(20):
        masks, _, _ = sample_masks(rng, 32, (4, 4), 0.5, RATIO)
        kinds += np.bincount(masks.any(2).sum(1), minlength=3)
    share = kinds / kinds.sum()
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.04)


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (4, 7)])
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_small_grids_and_extreme_probabilities(grid: tuple[int, int], probability: float) -> None:
    rng = np.random.default_rng(0)
    masks, indices, _ = sample_masks(rng, 4, grid, probability, RATIO)
    assert masks.sum() <= len(indices)
    most = upperbound(4, grid[0] * grid[1], probability, RATIO)
    assert len(indices) == slots_of(most) and most <= slots_of(most) < most + 8 + (most == 0)
    if not probability:
        assert not masks.any()
