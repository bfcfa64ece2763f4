"""The probe on augmented pictures against numpy SGD on features that are computed apart."""

import itertools

import jax
import numpy as np
import pytest

from dinov2_jax.data.loader import LabelledLoader
from dinov2_jax.data.sources.given import Arrays
from dinov2_jax.heads.grid import Grid
from dinov2_jax.heads.probe import ProbeSettings, initial_state
from dinov2_jax.heads.probe_images import train_images
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.run import resume
from tests.features.tiny import PREPROCESSING, backbone

GRID = Grid(rates=(0.05, 0.5), blocks=(1, 3))
SETTINGS = ProbeSettings(GRID, batch_size=16, iterations=6, save_every=2, seed=5)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (18 + i, 30, 3), dtype=np.uint8) for i in range(10)]
    return Arrays(pictures), np.asarray([0, 1, 2, 0, -1, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def weights():
    return backbone(registers=2)


def run(data, weights, **options):
    source, labels = data
    return train_images(
        weights.model, weights.params, PREPROCESSING, source, labels, 3, SETTINGS, **options
    )


@pytest.fixture(scope="module")
def trained(data, weights):
    return run(data, weights)


def features_by_hand(data, weights):
    """(inputs by kind, labels) of every batch, in float64."""
    source, labels = data
    loader = LabelledLoader(source, labels, batch_size=16, size=16, seed=5)
    for batch in itertools.islice(loader, 6):
        pixels = (batch["images"] / 255 - PREPROCESSING.mean) / PREPROCESSING.std
        images = pixels.astype(np.float32)
        depth, first = weights.model.depth, 1 + weights.model.registers
        last = tuple(range(depth - 3, depth))
        out = weights.model.apply({"params": weights.params}, images, intermediate=last)
        layers = [np.asarray(normed, np.float64) for _, normed in out["blocks"]]
        cls = [x[:, 0] for x in layers]
        mean = layers[-1][:, first:].mean(axis=1)
        parts = [cls[2:], [cls[2], mean], cls, [*cls, mean]]
        yield [np.concatenate(part, axis=1) for part in parts], batch["labels"]
    loader.close()


def test_equals_sgd_by_hand(data, weights, trained):
    batches = list(features_by_hand(data, weights))
    start = initial_state(SETTINGS, weights.model.dim, 3)["weights"]
    for kind, place in itertools.product(range(4), range(2)):
        weight, bias = start[kind][:, place].astype(np.float64), np.zeros(3)
        v_weight, v_bias = np.zeros_like(weight), np.zeros(3)
        for step, (inputs, labels) in enumerate(batches):
            x = inputs[kind]
            p = np.exp(x @ weight + bias)
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(16), labels] -= 1
            v_weight, v_bias = 0.9 * v_weight + x.T @ p / 16, 0.9 * v_bias + p.mean(axis=0)
            lr = GRID.rates[place] * 16 / 256 * (1 + np.cos(np.pi * step / 6)) / 2
            weight, bias = weight - lr * v_weight, bias - lr * v_bias
        moved = np.abs(weight - start[kind][:, place]).max()
        assert moved > 200 * 1e-5 * (1 if place else 0.1)
        np.testing.assert_allclose(trained.weights[kind][:, place], weight, atol=1e-5)
        np.testing.assert_allclose(trained.biases[kind][place], bias, atol=1e-5)


def test_device_count_does_not_matter(data, weights, trained):
    one = run(data, weights, mesh=make_mesh(devices=jax.devices()[:1]))
    for a, b in zip(trained.weights, one.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_a_killed_run_continues_bit_for_bit(data, weights, trained, monkeypatch, tmp_path):
    class Killed(resume.Progress):
        def update(self, step, **shown):
            if step == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "Progress", Killed)
        run(data, weights, folder=tmp_path)
    resumed = run(data, weights, folder=tmp_path)
    for a, b in zip(
        trained.weights + trained.biases, resumed.weights + resumed.biases, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="written with identity , but now it is other weights"):
        run(data, weights, folder=tmp_path, identity="other weights")


def test_wrong_labels_are_one_sentence(data, weights):
    source, labels = data
    with pytest.raises(ValueError, match="9 labels for 10 pictures"):
        run((source, labels[:-1]), weights)
    with pytest.raises(ValueError, match="class 2 has no picture"):
        run((source, np.where(labels == 2, -1, labels)), weights)
