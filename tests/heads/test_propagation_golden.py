"""Label propagation against DINO's own functions, and on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.heads import propagation
from dinov2_jax.heads.propagation import Rule
from dinov2_jax.parallel.mesh import make_mesh

TOLERANCE = 3 * 5e-7  # three times the agreement that the vectors state, of the greatest value


@pytest.fixture(scope="module")
def video(golden):
    return dict(np.load(golden / "video.npz").items())


def facts(video):
    context, radius, top_k = video["settings"].tolist()
    return context, radius, top_k, video["first_labels"].shape


def soft_labels(video, radius, context, top_k, frames=None):
    grid, first = video["first_labels"].shape, video["first_one_hot"][0]
    labels = np.moveaxis(first, 0, -1).reshape(-1, len(first))
    memory = propagation.begin(video["features"][0], labels, context)
    for frame, features in enumerate(video["features"][1:frames], start=1):
        rule = Rule(radius, top_k, 0.1)
        memory, labels = propagation.propagate(memory, features, frame, grid=grid, rule=rule)
        yield labels


def radii(video):
    return sorted({int(k[6 : k.index("/")]) for k in video if k.startswith("radius")})


def test_first_labels(video):
    _, _, _, grid = facts(video)
    expected = np.moveaxis(video["first_one_hot"][0], 0, -1).reshape(
        -1, video["first_one_hot"].shape[1]
    )
    objects = expected.shape[1] - 1
    found = propagation.one_hot(video["first_labels"], grid, objects)
    np.testing.assert_array_equal(found[:, : objects + 1], expected)
    assert not found[:, objects + 1 :].any()


def test_neighbourhood(video):
    _, radius, _, (rows, cols) = facts(video)
    places = jnp.stack(jnp.divmod(jnp.arange(rows * cols), cols), axis=1)
    found = propagation._near(places, places, radius)
    np.testing.assert_array_equal(found, video["neighbourhood_mask"])


def test_propagation(video):
    context, _, top_k, grid = facts(video)
    for radius in radii(video):
        for frame, labels in enumerate(soft_labels(video, radius, context, top_k), start=1):
            known = f"radius{radius}/frame{frame}"
            soft = np.moveaxis(np.asarray(labels).reshape(*grid, -1), -1, 0)
            expected = video[f"{known}/soft"][0]
            np.testing.assert_allclose(soft, expected, atol=TOLERANCE * expected.max(), rtol=0)
            pixels = video[f"{known}/labels_upsampled"]
            patch = pixels.shape[0] // grid[0]
            found = propagation.classes_of(labels, grid, patch, pixels.shape)
            np.testing.assert_array_equal(found, pixels)
            if f"{known}/normalised" in video:
                spread = np.moveaxis(propagation.at_pixels(labels, grid, patch), -1, 0)
                np.testing.assert_allclose(
                    spread, video[f"{known}/normalised"], atol=TOLERANCE, rtol=0
                )


def test_blocks_and_devices_change_nothing(video, monkeypatch):
    context, radius, top_k, _ = facts(video)
    expected = [np.asarray(x) for x in soft_labels(video, radius, context, top_k, 5)]
    monkeypatch.setattr(propagation, "_ROWS", 8)
    monkeypatch.setattr(propagation, "_MOST_SIMILARITIES", 1)
    for devices in (1, 2, 8):
        jax.clear_caches()  # the constants are no arguments
        with jax.set_mesh(make_mesh(devices=jax.devices()[:devices])):
            found = [np.asarray(x) for x in soft_labels(video, radius, context, top_k, 5)]
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    jax.clear_caches()


def test_equal_voters_all_vote():
    """Two patches resemble the target alike, and only one may vote by number."""
    features = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = jnp.array([[1.0, 0.0, 0], [0.0, 1.0, 0], [0, 0, 1.0]])
    memory = propagation.begin(features, labels, 0)
    target = jnp.tile(jnp.array([2.0, 0.0]), (3, 1))
    _, found = propagation.propagate(memory, target, 1, grid=(1, 3), rule=Rule(0, 1, 0.1))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0]] * 3, atol=1e-6)
    memory = propagation.begin(features, labels, 0)
    _, found = propagation.propagate(memory, target, 1, grid=(1, 3), rule=Rule(1, 1, 0.1))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0]] * 2 + [[0, 1, 0]], atol=1e-6)


def test_a_low_temperature_is_no_overflow():
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    memory = propagation.begin(features, np.eye(6, 4, dtype=np.float32), 2)
    _, found = propagation.propagate(memory, features, 1, grid=(2, 3), rule=Rule(0, 3, 1e-3))
    np.testing.assert_allclose(found, np.eye(6, 4), atol=1e-6)


def test_a_video_without_objects_is_background():
    memory = propagation.begin(
        np.eye(4), propagation.one_hot(np.zeros((4, 4), np.uint8), (2, 2), 0), 1
    )
    _, labels = propagation.propagate(memory, np.eye(4), 1, grid=(2, 2), rule=Rule())
    assert not propagation.classes_of(labels, (2, 2), 4, (9, 9)).any()
