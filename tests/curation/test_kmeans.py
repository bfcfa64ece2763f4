"""k-means against numpy in float64: any number of devices, resume, empty clusters, memory maps."""

import jax
import numpy as np
import pytest

from dinov2_jax.curation import kmeans, lloyd, plus_plus
from dinov2_jax.curation.blocks import Blocks, CurationError
from dinov2_jax.parallel.mesh import make_mesh


def draw(n=3000, width=24, groups=40, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, width))
    rows = centres[rng.integers(0, groups, n)] + 0.3 * rng.normal(size=(n, width))
    return rows.astype(np.float32)


def lloyd_of_numpy(rows, centroids):
    """(new centroids, labels, squared distances), float64."""
    rows, centroids = rows.astype(np.float64), centroids.astype(np.float64)
    apart = ((rows[:, None] - centroids) ** 2).sum(axis=2)
    label = apart.argmin(axis=1)
    means = centroids.copy()
    for cluster in np.unique(label):
        means[cluster] = rows[label == cluster].mean(axis=0)
    return means, label, apart.min(axis=1)


def test_a_step_is_that_of_numpy():
    rows = draw()
    start = rows[:50]
    done = kmeans.step(rows, start)
    means, label, distance = lloyd_of_numpy(rows, start)
    np.testing.assert_array_equal(done.label, label)
    np.testing.assert_array_equal(done.counts, np.bincount(label, minlength=50))
    np.testing.assert_allclose(done.distance, distance, atol=2e-5)
    np.testing.assert_allclose(done.centroids, means, atol=2**-16 * abs(rows).max())
    assert done.objective == pytest.approx(distance.sum(), rel=1e-6)


def test_tiles_and_blocks_change_nothing(monkeypatch):
    rows = draw()
    whole = kmeans.step(rows, rows[:100])
    monkeypatch.setattr("dinov2_jax.curation.blocks._CPU_TILE", (128, 16))
    parts = kmeans.step(rows, rows[:100])
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole.label, parts.label)


def test_the_lowest_of_equally_near_centroids_wins(monkeypatch):
    monkeypatch.setattr("dinov2_jax.curation.blocks._CPU_TILE", (128, 8))
    rows = draw(300)
    centroids = np.concatenate([rows[:10]] * 3)
    label, _ = kmeans.assign(rows, centroids)
    np.testing.assert_array_equal(label, lloyd_of_numpy(rows, rows[:10])[1])


def test_sums_stay_exact_where_one_cluster_has_all_rows():
    rows = np.full((200_000, 4), [0.7, -0.7, 0.01, 0.0], np.float32)
    done = kmeans.step(rows, np.zeros((1, 4), np.float32))
    assert done.counts.tolist() == [200_000]
    np.testing.assert_allclose(done.centroids[0], rows[0], atol=2**-17)


def fit(rows, **options):
    steps = []
    found = kmeans.fit(rows, 60, 8, 3, on_step=lambda *step: steps.append(step), **options)
    return found, steps


@pytest.fixture(scope="module")
def one_device():
    return fit(draw())


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_do_not_change_a_bit(devices, monkeypatch):
    monkeypatch.setattr("dinov2_jax.curation.blocks._CPU_TILE", (256, 1024))
    alone = fit(draw())[0]
    with jax.sharding.set_mesh(make_mesh(devices=jax.devices()[:devices])):
        found = fit(draw())[0]
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_resumed_fit_is_the_unbroken_one(one_device):
    whole, steps = one_device
    rest = kmeans.fit(draw(), 60, 8 - steps[2][0], 3, start=steps[2][1])
    np.testing.assert_array_equal(rest.centroids, whole.centroids)
    np.testing.assert_array_equal(rest.label, whole.label)
    assert rest.objective == whole.objective[3:]


def test_the_objective_falls_and_belongs_to_the_result(one_device):
    found, _ = one_device
    assert np.all(np.diff(found.objective) < 0) and len(found.objective) == 9
    _, label, distance = lloyd_of_numpy(draw(), found.centroids)
    np.testing.assert_array_equal(found.label, label)
    assert found.objective[-1] == pytest.approx(distance.sum(), rel=1e-6)


def test_a_fit_ends_when_no_centroid_moves():
    rows = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)
    found = kmeans.fit(rows, 4, 100, 0)
    assert len(found.objective) <= 2 and found.objective[-1] == 0
    assert np.bincount(found.label).tolist() == [50] * 4


def test_empty_clusters_stay_or_split_the_largest():
    rows = draw(500)
    far = np.full((2, 24), 50, np.float32)
    start = np.concatenate([far[:1], rows[:6], far[1:]])
    kept = kmeans.step(rows, start)
    np.testing.assert_array_equal(kept.centroids[[0, 7]], far)
    largest = kept.counts.argmax()
    split = kmeans.step(rows, start, empty="split")
    np.testing.assert_allclose(split.centroids[0], kept.centroids[largest], rtol=2e-3)
    assert (split.centroids[0] != split.centroids[largest]).all()
    again = kmeans.step(rows, split.centroids)
    assert (again.counts > 0).sum() > (kept.counts > 0).sum()
    assert again.objective < kmeans.step(rows, kept.centroids).objective


def test_splits_halve_the_largest_again_and_again():
    centroids = np.ones((6, 2), np.float32) * np.arange(1, 7, dtype=np.float32)[:, None]
    split = lloyd.split_largest(centroids, np.array([100, 0, 0, 60, 0, 1]))
    # 100 -> 50 + 50, then 60 -> 30 + 30, then a half of the 100.
    np.testing.assert_allclose(split[1], 1, rtol=2e-3)
    np.testing.assert_allclose(split[2], 4, rtol=2e-3)
    np.testing.assert_allclose(split[4], 1, rtol=4e-3)
    np.testing.assert_array_equal(split[5], centroids[5])


def test_a_memory_map_of_halves_is_read_again_at_every_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("dinov2_jax.curation.blocks._CPU_TILE", (256, 1024))
    monkeypatch.setattr("dinov2_jax.curation.blocks.MOST_ROWS", 512)
    np.save(tmp_path / "rows.npy", draw().astype(np.float16))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    blocks = Blocks(rows, resident_bytes=0)
    found, held = fit(blocks)[0], fit(np.array(rows))[0]
    assert not blocks._held
    for one, other in zip(found, held, strict=True):
        np.testing.assert_array_equal(one, other)


def test_first_centroids_are_rows_and_better_than_any_rows():
    for k in (30, 300):  # one level, and two
        rows = draw(6000, groups=k)
        chosen = kmeans.init_centroids(rows, k, 0)
        assert chosen.shape == (k, 24) and len(np.unique(chosen, axis=0)) == k
        assert np.isin(chosen[:, 0], rows[:, 0]).all()
        plain = kmeans.step(rows, rows[:k]).objective
        assert kmeans.step(rows, chosen).objective < 0.6 * plain
        assert not np.array_equal(chosen, kmeans.init_centroids(rows, k, 1))


def test_plus_plus_finds_every_group_far_apart():
    rng = np.random.default_rng(1)
    centres = 50 * rng.normal(size=(20, 24))
    which = rng.integers(0, 20, 2000)
    rows = (centres[which] + rng.normal(size=(2000, 24))).astype(np.float32)
    assert len(np.unique(which[plus_plus.choose(rows, 20, 0)])) == 20


def test_shares_add_up_within_their_limits():
    counts = np.array([3, 0, 50, 50, 2])
    shares = plus_plus._shares(np.array([9.0, 0, 1, 3, 0]), counts, 40)
    assert shares.sum() == 40 and (shares <= counts).all() and (shares[counts > 0] > 0).all()
    assert shares[3] > shares[2]


def test_what_cannot_be_clustered_is_told():
    rows = draw(50)
    with pytest.raises(CurationError, match="k=51 clusters of 50 rows"):
        kmeans.fit(rows, 51, 1, 0)
    with pytest.raises(CurationError, match="shape"):
        kmeans.fit(rows, 5, 1, 0, start=rows[:4])
    with pytest.raises(CurationError, match="0 rows"):
        kmeans.fit(rows[:0], 1, 1, 0)
    with pytest.raises(CurationError, match="float"):
        kmeans.fit(np.ones((5, 2), np.int32), 1, 1, 0)
    with pytest.raises(CurationError, match="23 values"):
        kmeans.assign(rows, rows[:4, :23])
    rows[17, 3] = np.nan
    with pytest.raises(CurationError, match="row 17 is not finite"):
        kmeans.fit(rows, 5, 1, 0)
