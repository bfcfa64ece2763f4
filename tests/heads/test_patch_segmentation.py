"""k-NN and logistic regression of patches against scikit-learn and a plain loop."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads import patch_segmentation as ps
from dinov2_jax.parallel.mesh import make_mesh

PATCH, CLASSES = 4, 5
KS = (1, 3, 10)


def made(count, seed=0, dim=6):
    """Features that tell the class of most pixels of a patch."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    centres = np.random.default_rng(9).normal(size=(CLASSES, dim))
    features = (centres[labels] + 0.7 * rng.normal(size=(count, dim))).astype(np.float32)
    noise = rng.integers(0, CLASSES, (count, PATCH**2))
    layouts = np.where(rng.random(noise.shape) < 0.6, labels[:, None], noise)
    return features, layouts.astype(np.uint8)


def test_layouts_go_there_and_back():
    pictures = np.random.default_rng(0).integers(0, 9, (3, 8, 12)).astype(np.uint8)
    layouts = ps.layouts_of(pictures, PATCH)
    assert layouts.shape == (3 * 2 * 3, PATCH**2)
    np.testing.assert_array_equal(layouts[6 + 4].reshape(4, 4), pictures[1, 4:8, 4:8])
    np.testing.assert_array_equal(ps.pictures_of(layouts, (8, 12), PATCH), pictures)


def test_modes_by_a_plain_count(monkeypatch):
    monkeypatch.setattr(ps, "_ROWS_AT_ONCE", 7)
    layouts = np.random.default_rng(0).integers(0, 4, (50, 9)).astype(np.uint8)
    layouts[3] = [255] * 5 + [0] * 4
    layouts[4] = [255] * 3 + [2] * 3 + [1] * 3
    expected = [min(set(row), key=lambda v: (-list(row).count(v), v)) for row in layouts.tolist()]
    assert ps.modes(layouts).tolist() == expected and expected[3:5] == [255, 1]


def test_scale_is_scikits(monkeypatch):
    monkeypatch.setattr(ps, "_ROWS_AT_ONCE", 7)
    features = made(100)[0] * 3 + 50
    features[:, 2] = 0.1
    expected = StandardScaler().fit(features.astype(np.float64))
    scale = ps.scale_of(features)
    np.testing.assert_allclose(scale(features), expected.transform(features), atol=2e-5)
    np.testing.assert_allclose(scale.mean, expected.mean_, rtol=1e-6)
    np.testing.assert_allclose(scale.deviation, expected.scale_, rtol=1e-6)


@pytest.mark.parametrize("metric", ps.METRICS)
def test_knn_is_scikits(metric):
    (features, layouts), (queries, _) = made(400), made(70, seed=1)
    found = ps.PatchBank(features, layouts, metric).predict(queries, KS)
    for k, ours in zip(KS, found, strict=True):
        name = "euclidean" if metric == "l2" else "cosine"
        peer = KNeighborsClassifier(k, metric=name, algorithm="brute").fit(features, layouts)
        np.testing.assert_array_equal(ours, peer.predict(queries))


def test_the_two_distances_differ():
    (features, layouts), (queries, _) = made(400), made(70, seed=1)
    cosine, l2 = (ps.PatchBank(features, layouts, m).predict(queries, (3,)) for m in ps.METRICS)
    assert (cosine != l2).any()


@pytest.mark.parametrize("k", [1, 4, 9])
def test_ignored_pixels_do_not_vote(k):
    rng = np.random.default_rng(0)
    (features, layouts), (queries, _) = made(60), made(20, seed=1)
    layouts[rng.random(layouts.shape) < 0.4] = ps.IGNORED
    keep = ps.modes(layouts) != ps.IGNORED
    features, layouts = features[keep], layouts[keep]
    found = ps.PatchBank(features, layouts, "l2").predict(queries, (k,))[0]
    own = ps.modes(layouts)
    for query, ours in zip(queries, found, strict=True):
        near = np.argsort(np.square(features - query).sum(axis=1), kind="stable")[:k]
        for position, value in enumerate(ours):
            votes = [v for v in layouts[near, position].tolist() if v != ps.IGNORED]
            expected = min(set(votes), key=lambda v: (-votes.count(v), v), default=own[near[0]])
            assert value == expected


def test_devices_change_nothing():
    (features, layouts), (queries, _) = made(403), made(50, seed=1)
    found = []
    for devices in (1, 2, 8):
        with jax.set_mesh(make_mesh(devices=jax.devices()[:devices])):
            found += [ps.PatchBank(features, layouts, m).predict(queries, KS) for m in ps.METRICS]
    np.testing.assert_array_equal(found[2:4], found[:2])
    np.testing.assert_array_equal(found[4:], found[:2])


def test_more_neighbours_than_patches_are_all():
    features, layouts = made(7)
    found = ps.PatchBank(features, layouts, "l2").predict(features, (7, 30))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_bank_of_ignored_patches_is_refused():
    features, layouts = made(7)
    layouts[2] = ps.IGNORED
    with pytest.raises(EvaluationError, match="leave them out"):
        ps.PatchBank(features, layouts, "l2")


def test_logistic_regression_is_scikits():
    (features, layouts), (queries, _) = made(300), made(70, seed=1)
    values = (0.01, 1.0)
    for C, ours in zip(values, ps.fit_classifiers(features, layouts, CLASSES, values), strict=True):
        peer = LogisticRegression(C=C, tol=1e-10, max_iter=5000)
        peer.fit(features.astype(np.float64), ps.modes(layouts))
        expected = np.repeat(peer.predict(queries)[:, None], PATCH**2, axis=1)
        np.testing.assert_array_equal(ours.predict(queries), expected)
        scores = ours.model.scores(queries) - peer.decision_function(queries)
        np.testing.assert_allclose(scores - scores[:, :1], 0, atol=1e-3)
