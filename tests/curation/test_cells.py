"""Pairs above a threshold against numpy in float64; how many of them the cells find."""

import jax
import numpy as np
import pytest

from dinov2_jax.curation import cells, kmeans
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.parallel.mesh import make_mesh

THRESHOLD = 0.6


def draw(n, width, groups, seed=0):
    """Groups of unrelated rows; a tenth of the rows are copies with a cosine of 0.62 to 0.97."""
    rng = np.random.default_rng(seed)

    def units(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    centres = units(rng.normal(size=(groups, width)))
    rows = units(0.8 * centres[rng.integers(0, groups, n)] + units(rng.normal(size=(n, width))))
    copies = rng.choice(n, n // 10, replace=False)
    sources = rng.choice(np.setdiff1d(np.arange(n), copies), len(copies))
    noise = rng.normal(size=(len(copies), width))
    along = (noise * rows[sources]).sum(axis=1, keepdims=True) * rows[sources]
    cosine = rng.uniform(0.62, 0.97, (len(copies), 1))
    rows[copies] = cosine * rows[sources] + np.sqrt(1 - cosine**2) * units(noise - along)
    return rows.astype(np.float32)


def pairs_of_numpy(rows, threshold):
    cosine = rows.astype(np.float64) @ rows.astype(np.float64).T
    a, b = np.nonzero(np.triu(cosine > threshold, 1))
    return a, b, cosine[a, b]


def same(found, expected):
    np.testing.assert_array_equal(found.a, expected[0])
    np.testing.assert_array_equal(found.b, expected[1])
    np.testing.assert_allclose(found.cosine, expected[2], atol=1e-6)


@pytest.fixture(scope="module")
def pool():
    return draw(3000, 64, 50)


def test_all_pairs_are_those_of_numpy(pool):
    expected = pairs_of_numpy(pool, THRESHOLD)
    assert len(expected[0]) > 300
    scaled = pool * np.random.default_rng(1).uniform(0.5, 9, (len(pool), 1)).astype(np.float32)
    same(cells.exact_pairs_above(scaled, THRESHOLD), expected)


def test_one_cell_is_all_pairs_and_so_are_all_probes(pool):
    expected = pairs_of_numpy(pool, THRESHOLD)
    same(cells.pairs_above(pool, THRESHOLD, cells=1), expected)
    same(cells.pairs_above(pool, THRESHOLD, cells=12, probes=12), expected)


def test_cells_find_99_of_100_pairs_at_5_of_100_comparisons():
    rows = draw(10_000, 64, 200)
    exact = cells.exact_pairs_above(rows, THRESHOLD)
    plan = cells.plan_pairs(len(rows), 64, cells=320, probes=12)
    assert plan.share <= 0.04
    found = cells.pairs_above(rows, THRESHOLD, cells=320, probes=12)
    whole = {*zip(exact.a.tolist(), exact.b.tolist(), strict=True)}
    some = {*zip(found.a.tolist(), found.b.tolist(), strict=True)}
    assert some <= whole and len(whole) > 2000
    assert len(some) >= 0.99 * len(whole)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_change_nothing(pool, devices):
    alone = cells.pairs_above(pool, THRESHOLD, cells=12, probes=3)
    with jax.sharding.set_mesh(make_mesh(devices=jax.devices()[:devices])):
        found = cells.pairs_above(pool, THRESHOLD, cells=12, probes=3)
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_join_goes_on_at_a_cell(pool):
    told = []
    centroids = cells.make_cells(pool, 12)
    whole = cells.pairs_above(
        pool, THRESHOLD, cells=centroids, probes=3, on_cell=lambda *cell: told.append(cell)
    )
    assert [cell for cell, _, _ in told] == list(range(12)) and {n for _, n, _ in told} == {12}
    rest = cells.pairs_above(pool, THRESHOLD, cells=centroids, probes=3, first_cell=5)
    joined = cells._sorted([rest, *(pairs for cell, _, pairs in told if cell < 5)])
    for one, other in zip(joined, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_memory_map_of_halves(pool, tmp_path):
    np.save(tmp_path / "rows.npy", pool.astype(np.float16))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    found = cells.pairs_above(rows, THRESHOLD, cells=6, probes=6)
    halves = np.array(rows, np.float64)
    halves /= np.linalg.norm(halves, axis=1, keepdims=True)
    same(found, pairs_of_numpy(halves, THRESHOLD))


def test_pairs_with_a_bank_are_all_found_however_many():
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(700, 16)).astype(np.float32)
    queries = np.concatenate([bank[:3] * 2, rng.normal(size=(20, 16)).astype(np.float32)])
    found = cells.cross_pairs_above(queries, bank, 0.05)

    def units(x):
        return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)

    cosine = units(queries) @ units(bank).T
    a, b = np.nonzero(cosine > 0.05)
    assert np.bincount(a).max() > 256
    same(found, (a, b, cosine[a, b]))
    cosines, rows = cells.nearest(queries, bank, 5)
    np.testing.assert_array_equal(rows, np.argsort(-cosine, axis=1)[:, :5])
    np.testing.assert_allclose(cosines[:3, 0], 1, atol=1e-6)


def test_the_plan_is_a_sentence():
    small, large = cells.plan_pairs(50_000, 128), cells.plan_pairs(10_000_000, 128)
    assert (small.cells, small.share) == (0, 1) and "exactly" in str(small)
    assert large.cells == 12649 and large.share < 0.0013
    assert "10,000,000 rows are compared through 12,649 cells: 0.126 % of the pairs" in str(large)


def test_what_cannot_be_joined_is_told(pool):
    for threshold in (0, 1, 2.5):
        with pytest.raises(CurationError, match="between 0 and 1"):
            cells.pairs_above(pool, threshold)
    with pytest.raises(CurationError, match="cells=3001"):
        cells.pairs_above(pool, THRESHOLD, cells=3001)
    with pytest.raises(CurationError, match="probes=0"):
        cells.pairs_above(pool, THRESHOLD, probes=0)
    with pytest.raises(CurationError, match="more than 2 pairs a row"):
        cells.exact_pairs_above(pool, 0.2, most_per_row=2)
    broken = pool.copy()
    broken[40] = np.inf
    with pytest.raises(CurationError, match="row 40 is not finite"):
        cells.exact_pairs_above(broken, THRESHOLD)


def test_cells_may_be_centroids_that_exist(pool):
    centroids = kmeans.fit(pool, 10, 3, 0).centroids
    near = cells.nearest_cells(pool, centroids, 4)
    apart = ((pool[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
    np.testing.assert_array_equal(near, np.argsort(apart, axis=1)[:, :4])
    found = cells.pairs_above(pool, THRESHOLD, cells=centroids, probes=10)
    same(found, pairs_of_numpy(pool, THRESHOLD))
