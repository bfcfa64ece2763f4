"""Hierarchical k-means: nested labels, resampling, and samples more even than the pool."""

import numpy as np
import pytest

from dinov2_jax.curation import hierarchy
from dinov2_jax.curation.blocks import CurationError


def quotas(sizes, target):
    """Fills all parts to one height; what is left goes to the first that have more."""
    shares = np.zeros_like(sizes)
    for _ in range(target):
        left = np.flatnonzero(shares < sizes)
        shares[left[shares[left].argmin()]] += 1
    return shares


def pick(rows, number, seed):
    return np.random.default_rng(seed).choice(rows, number, replace=False)


def mixture(seed=0, dense=10_000, sparse=100):
    """Two squares side by side, one with 100 times the rows of the other."""
    rows = np.random.default_rng(seed).uniform(0, 1, (dense + sparse, 2))
    rows[dense:, 0] += 1
    return rows.astype(np.float32)


def divergence(rows):
    """KL of the rows' share in four strips from the uniform distribution."""
    counts = np.histogram(rows[:, 0], bins=4, range=(0, 2))[0]
    p = counts[counts > 0] / counts.sum()
    return float((p * np.log(p * 4)).sum())


def test_a_balanced_sample_of_levels_is_even():
    even = []
    for seed in range(2):
        rows = mixture(seed)
        flat = hierarchy.fit(rows, [150], seed, iterations=10, resamples=[0])
        levels = hierarchy.fit(rows, [150, 30], seed, iterations=10, resamples=[5, 5])
        samples = [
            rows[hierarchy.sample(found, 100, seed, quotas=quotas, pick=pick)]
            for found in (flat, levels)
        ]
        even.append([divergence(rows), *map(divergence, samples)])
    pool, flat, levels = np.mean(even, axis=0)
    assert 10 * levels < flat < pool


def test_labels_nest_and_levels_go_on():
    rows = mixture()[:3000]
    seen = []
    levels = hierarchy.fit(
        rows, [60, 12, 3], 1, iterations=5, resamples=[1, 2, 0],
        on_level=lambda *level: seen.append(level),
    )  # fmt: skip
    assert [number for number, _ in seen] == [1, 2, 3]
    flat = hierarchy.flat_labels(levels)
    assert flat.shape == (3000, 3)
    for below, above in ((0, 1), (1, 2)):
        parents = {(a, b) for a, b in flat[:, [below, above]].tolist()}
        assert len(parents) == len({a for a, _ in parents})
    apart = ((rows[:, None] - levels[0].centroids) ** 2).sum(axis=2)
    np.testing.assert_array_equal(levels[0].label, apart.argmin(axis=1))
    again = hierarchy.fit(rows, [60, 12, 3], 1, iterations=5, resamples=[1, 2, 0], done=levels[:1])
    for one, other in zip(levels, again, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_the_nearest_of_each_cluster():
    label = np.array([1, 0, 1, 1, 3, 1])
    distance = np.array([3.0, 9, 1, 2, 5, 2])
    assert hierarchy.closest(label, distance, 4, 2).tolist() == [1, 2, 3, 4]


def test_shares_come_from_the_top():
    one = hierarchy.Level(np.zeros((4, 1)), np.repeat([0, 1, 2, 3], [50, 2, 30, 40]), np.zeros(122))
    two = hierarchy.Level(np.zeros((2, 1)), np.array([0, 0, 1, 1]), np.zeros(4))
    # 20 for each top cluster; the second cluster has but 2 rows.
    assert hierarchy.leaf_shares([one, two], 40, quotas).tolist() == [18, 2, 10, 10]
    rows = hierarchy.sample([one, two], 40, 0, quotas=quotas, pick=pick)
    assert np.bincount(one.label[rows]).tolist() == [18, 2, 10, 10]
    everything = hierarchy.sample([one, two], 1000, 0, quotas=quotas, pick=pick)
    assert everything.tolist() == list(range(122))


def test_what_has_no_levels_is_told():
    rows = mixture()[:200]
    for sizes in ([], [20, 20], [5, 10]):
        with pytest.raises(CurationError, match="each smaller"):
            hierarchy.fit(rows, sizes, 0)
    with pytest.raises(CurationError, match=r"resamples=\[1\] for 2 levels"):
        hierarchy.fit(rows, [20, 5], 0, resamples=[1])
    with pytest.raises(CurationError, match="k=201"):
        hierarchy.fit(rows, [201], 0)
    levels = hierarchy.fit(rows, [5], 0, iterations=1)
    with pytest.raises(CurationError, match="target=0"):
        hierarchy.sample(levels, 0, 0, quotas=quotas, pick=pick)
