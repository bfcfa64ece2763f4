"""Worked values of the losses, and each property that a bug would break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.ssl import centering
from dinov2_jax.ssl.diagnostics import effective_rank
from dinov2_jax.ssl.dino import dino_global_loss, dino_local_loss, dino_terms
from dinov2_jax.ssl.ibot import ibot_loss
from dinov2_jax.ssl.koleo import koleo_loss
from dinov2_jax.ssl.scores import DenseScores, DenseTargets


def det(shape: tuple[int, ...], k: float) -> jnp.ndarray:
    i = np.arange(np.prod(shape)) + 1
    value = np.sin(1.7 * k * i) + 0.5 * np.cos(0.3 * k * i)
    return jnp.asarray(value.astype(np.float32).reshape(shape))


TEMP = 0.07


@pytest.fixture(scope="module")
def sinkhorn_targets():
    """Slots (2, 3, 8) of the reference, image-major: (3, 2, 8)."""
    return centering.sinkhorn_knopp(det((6, 8), 1), TEMP).reshape(2, 3, 8).swapaxes(0, 1)


def crop_major(x: jnp.ndarray, views: int) -> jnp.ndarray:
    return x.reshape(views, -1, x.shape[-1]).swapaxes(0, 1)


def test_sinkhorn_row(sinkhorn_targets):
    want = [0.930053, 1e-6, 0, 0.046797, 0.02132, 0, 0, 0.00183]
    np.testing.assert_allclose(sinkhorn_targets[0, 0], want, rtol=0, atol=1e-6)


def test_softmax_center_row():
    got = centering.softmax_center(det((6, 8), 1), jnp.zeros(8), TEMP)[0]
    want = [0.999873, 0, 0, 1.2e-5, 1.14e-4, 0, 0, 1e-6]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_dino_losses(sinkhorn_targets):
    # Slot 0 holds the teacher's second crop: "flattened" there pairs student crop 1 with slot 0.
    own_crop = DenseTargets(jnp.flip(sinkhorn_targets, axis=1))
    student = crop_major(det((6, 8), 0.9), 2)
    got = dino_global_loss(DenseScores(student), own_crop) / dino_terms(8)
    np.testing.assert_allclose(got, 0.96409363, rtol=2e-6)
    local = crop_major(det((24, 8), 1.1), 8)
    got = dino_local_loss(DenseScores(local), own_crop) / dino_terms(8)
    np.testing.assert_allclose(got, 9.85488129, rtol=2e-6)


def test_dino_terms():
    assert [dino_terms(n) for n in (8, 3, 0)] == [18, 8, 3]


def test_ibot_loss_with_padding():
    targets = DenseScores(det((5, 8), 1.3)).sinkhorn_knopp(TEMP)
    weights = jnp.array([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])
    student = det((5, 8), 0.8)
    got = ibot_loss(DenseScores(student), targets, weights, 6)
    np.testing.assert_allclose(got, 3.02648759, rtol=2e-6)
    teacher, student, weights = (
        jnp.concatenate([x, jnp.full((3, *x.shape[1:]), f)])
        for x, f in ((det((5, 8), 1.3), 9.0), (student, 7.0), (weights, 0.0))
    )
    targets = DenseScores(teacher).sinkhorn_knopp(TEMP, weights > 0)
    got = ibot_loss(DenseScores(student), targets, weights, 6)
    np.testing.assert_allclose(got, 3.02648759, rtol=2e-6)


def test_koleo():
    np.testing.assert_allclose(koleo_loss(det((4, 6), 0.7)), 0.10947419, rtol=2e-6)


def test_koleo_groups_are_separate():
    x = det((2, 4, 6), 0.7)
    want = (koleo_loss(x[0]) + koleo_loss(x[1])) / 2
    np.testing.assert_allclose(koleo_loss(x), want, rtol=1e-6)


def test_centers():
    dino = centering.update_center(jnp.zeros(8), det((6, 8), 1).mean(axis=0))
    want = [0.005847, 0.006339, 0.007141, 0.004373, 0.001093, 0.000679, -0.000437, -0.004314]
    np.testing.assert_allclose(dino, want, rtol=0, atol=1e-6)
    rows, valid = det((1, 5, 8), 1.3), jnp.ones((1, 5), bool)
    ibot = centering.update_center(jnp.zeros(8), centering.masked_group_mean(rows, valid))
    want = [0.008384, 0.014225, -0.002851, 0.002229, 0.001831, -0.014433, -0.004784, -0.007157]
    np.testing.assert_allclose(ibot, want, rtol=0, atol=1e-6)


def reference_sinkhorn(logits: np.ndarray, temp: float) -> np.ndarray:
    """The reference's sequence of normalisations, in float64."""
    q = np.exp(logits.astype(np.float64) / temp).T
    q /= q.sum()
    prototypes, rows = q.shape
    for _ in range(3):
        q /= q.sum(axis=1, keepdims=True) * prototypes
        q /= q.sum(axis=0, keepdims=True) * rows
    return (q * rows).T


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_sinkhorn_against_float64(gain):
    """Also with trained gains: the exponents span 150, more than fp32 holds."""
    logits = gain * np.random.default_rng(0).uniform(-1, 1, (40, 12)).astype(np.float32)
    got = centering.sinkhorn_knopp(jnp.asarray(logits), 0.04)
    np.testing.assert_allclose(got, reference_sinkhorn(logits, 0.04), rtol=0, atol=3e-5)
    np.testing.assert_allclose(got.sum(axis=-1), 1.0, rtol=0, atol=1e-5)


def test_cross_entropy_gradient_against_log_softmax():
    logits, probabilities = det((4, 8), 0.9), jax.nn.softmax(det((4, 8), 1.3))

    def plain(x):
        return -(probabilities * jax.nn.log_softmax(x / 0.1)).sum()

    targets = DenseTargets(probabilities)
    got = jax.grad(lambda x: DenseScores(x).cross_entropy(targets).sum())(logits)
    np.testing.assert_allclose(got, jax.grad(plain)(logits), rtol=0, atol=2e-5)


def test_effective_rank():
    assert effective_rank(jnp.eye(6)) == pytest.approx(5.0, rel=1e-5)  # centring removes one
    line = jnp.arange(6.0)[:, None] * jnp.ones((1, 4))
    assert effective_rank(line) == pytest.approx(1.0, rel=1e-5)
