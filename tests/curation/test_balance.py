"""Quotas against every possible allocation; picks that no order changes; keys by SplitMix64."""

import itertools

import numpy as np
import pytest

from dinov2_jax.curation.balance import keys, pick, quotas
from dinov2_jax.errors import UserError


def most_even(sizes: tuple[int, ...], target: int) -> tuple[int, ...]:
    """The allocation whose smallest parts are largest; among equals, the first gives most."""
    every = itertools.product(*(range(size + 1) for size in sizes))
    fitting = [given for given in every if sum(given) == target]
    return max(fitting, key=lambda given: (sorted(given), given))


@pytest.mark.parametrize("sizes", [(3, 0, 5, 2), (1, 1, 1), (6,), (5, 5, 1, 1), (0, 0)])
def test_quotas_are_the_most_even_allocation(sizes: tuple[int, ...]) -> None:
    for target in range(sum(sizes) + 1):
        given = quotas(np.array(sizes), target)
        assert tuple(given) == most_even(sizes, target), target
        assert given.dtype == np.int64


def test_quotas_of_many_clusters_add_up_and_are_level() -> None:
    sizes = np.random.default_rng(0).zipf(1.3, 100_000).clip(0, 10**12)
    target = 25_000_000
    given = quotas(sizes, target)
    assert given.sum() == target
    assert (given <= sizes).all()
    more = sizes > given
    assert np.ptp(given[more]) <= 1
    assert (given[~more] <= given[more].max()).all()


def test_more_than_the_clusters_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"6 pictures are wanted and the clusters hold 5"):
        quotas(np.array([2, 3]), 6)


def test_keys_are_splitmix64() -> None:
    """The generator of the paper, walked in plain Python from where `keys` starts."""
    mask = 2**64 - 1

    def after(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
        return state ^ (state >> 31)

    golden = 0x9E3779B97F4A7C15
    assert after(golden) == 0xE220A8397B1DCDAF  # the first output of seed 0, as published
    start = after((7 * golden + golden) & mask)
    wanted = [after((start + (row + 1) * golden) & mask) for row in range(5)]
    assert keys(np.arange(5), 7).tolist() == wanted
    assert keys(np.array([4, 2]), 7).tolist() == [wanted[4], wanted[2]]


def test_keys_of_different_rows_and_seeds_differ() -> None:
    rows = np.arange(100_000)
    every = np.concatenate([keys(rows, seed) for seed in (0, 1, 2)])
    assert len(np.unique(every)) == len(every)
    ones = np.unpackbits(every.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(64 * len(every))


def test_a_pick_depends_on_the_set_alone_and_grows() -> None:
    rows = np.random.default_rng(1).permutation(1000)[:400]
    some = pick(rows, 50, seed=3)
    assert len(some) == 50
    assert (np.diff(some) > 0).all()
    assert set(some) <= set(rows)
    np.testing.assert_array_equal(some, pick(rows[::-1], 50, seed=3))
    assert set(some) <= set(pick(rows, 51, seed=3))
    assert set(some) != set(pick(rows, 50, seed=4))
    np.testing.assert_array_equal(pick(rows, 1000, seed=3), np.sort(rows))
    assert not len(pick(rows, 0, seed=3))


def test_every_row_is_as_likely() -> None:
    counts = np.zeros(100)
    for seed in range(2000):
        counts[pick(np.arange(100), 10, seed)] += 1
    # Binomial: mean 200, std 13.4.
    assert abs(counts - 200).max() < 5 * 13.4
