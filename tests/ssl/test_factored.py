"""The factored losses equal the written-out ones, in value and gradient, and need less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models.head import DINOHead, l2_normalize
from dinov2_jax.ssl.dino import dino_global_loss, dino_local_loss
from dinov2_jax.ssl.factored import FactoredScores, FactoredTargets
from dinov2_jax.ssl.ibot import ibot_loss
from dinov2_jax.ssl.scores import DenseScores, make_scores
from tests.train.tiny import tiny_config, train_steps

PROTOTYPES, WIDTH, TEMP = 24, 8, 0.05


def scores(seed: int, *rows: int, gain: float = 1.0) -> tuple[FactoredScores, np.ndarray]:
    """Random unit features and prototypes of different gains, and their float64 products."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(*rows, WIDTH))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    prototypes = rng.normal(size=(PROTOTYPES, WIDTH))
    gains = gain * rng.uniform(0.5, 1.5, PROTOTYPES) / np.linalg.norm(prototypes, axis=1)
    prototypes *= gains[:, None]
    factors = (jnp.asarray(x, jnp.float32) for x in (features, prototypes))
    factored = FactoredScores(*factors, 6)
    return factored, features @ prototypes.T


def written_out(targets: FactoredTargets) -> np.ndarray:
    logits = np.einsum("...td,kd->...tk", targets.scores.features, targets.scores.prototypes)
    exponent = logits / targets.temp + targets.column + targets.row[..., None]
    return np.exp(exponent).sum(-2)


def sinkhorn_float64(logits: np.ndarray, temp: float) -> np.ndarray:
    """The reference's sequence: prototypes sum to 1/K, rows to 1/B, three times."""
    q = np.exp(logits / temp).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * q.shape[0]
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("gain", [1.0, 6.0])
def test_sinkhorn(gain):
    factored, logits = scores(0, 10, gain=gain)
    got = written_out(factored.sinkhorn_knopp(TEMP))
    np.testing.assert_allclose(got, sinkhorn_float64(logits, TEMP), rtol=1e-4, atol=1e-6)


def test_sinkhorn_leaves_padding_out():
    factored, logits = scores(0, 10)
    valid = jnp.arange(10) < 7
    got = written_out(factored.sinkhorn_knopp(TEMP, valid))
    want = sinkhorn_float64(logits[:7], TEMP)
    np.testing.assert_allclose(got[:7], want, rtol=1e-4, atol=1e-6)
    assert not got[7:].any()


def test_centering():
    factored, logits = scores(1, 2, 5)
    center = np.random.default_rng(2).normal(size=PROTOTYPES) / 10
    got = written_out(factored.softmax_center(jnp.asarray(center, jnp.float32), TEMP))
    want = np.exp((logits - center) / TEMP)
    np.testing.assert_allclose(got, want / want.sum(-1, keepdims=True), rtol=2e-5, atol=1e-7)


def dense(factored: FactoredScores) -> DenseScores:
    return DenseScores(factored.features @ factored.prototypes.T)


def dino(targets, crops, local) -> jax.Array:
    return dino_global_loss(crops, targets) + dino_local_loss(local, targets)


def test_losses_and_gradients_equal_the_dense_ones():
    teacher, _ = scores(3, 4, 2)
    crops, _ = scores(4, 4, 2)
    local, _ = scores(5, 4, 3)
    local = local.replace(prototypes=crops.prototypes)
    targets = teacher.sinkhorn_knopp(TEMP)
    written = dense(teacher).sinkhorn_knopp(TEMP)

    def loss(features, local_features, prototypes, factored):
        a = crops.replace(features=features, prototypes=prototypes)
        b = local.replace(features=local_features, prototypes=prototypes)
        return dino(targets, a, b) if factored else dino(written, dense(a), dense(b))

    arguments = crops.features, local.features, crops.prototypes
    got = jax.value_and_grad(loss, (0, 1, 2))(*arguments, True)
    want = jax.value_and_grad(loss, (0, 1, 2))(*arguments, False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


def test_masked_patch_loss_with_padding():
    teacher, _ = scores(6, 2, 5)
    student, _ = scores(7, 2, 5)
    valid = jnp.arange(5) < jnp.array([[3], [5]])
    weights = valid / valid.sum(-1, keepdims=True)
    targets = teacher.sinkhorn_knopp(TEMP, valid)
    written = dense(teacher).sinkhorn_knopp(TEMP, valid)

    def loss(features, factored):
        s = student.replace(features=features)
        return ibot_loss(s if factored else dense(s), targets if factored else written, weights, 8)

    got = jax.value_and_grad(loss)(student.features, True)
    want = jax.value_and_grad(loss)(student.features, False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)
    assert np.isfinite(got[1]).all()


def test_entropy_and_first_choice():
    targets = scores(8, 9)[0].sinkhorn_knopp(TEMP)
    entropy, choice = targets.entropy_and_choice()
    want = written_out(targets)
    np.testing.assert_allclose(entropy, -np.sum(want * np.log(want), -1), rtol=1e-5)
    np.testing.assert_array_equal(choice, want.argmax(-1))


def run_steps(centering: str, block: int, mesh_sizes=(1, 1)) -> list[dict[str, float]]:
    config = tiny_config(centering=centering, prototype_block=block)
    config.ibot.separate_head, config.ibot.head_prototypes = True, 32
    config.ibot.head_bottleneck_dim = config.ibot.head_hidden_dim = 16
    return train_steps(config, 3, mesh_sizes)[0]


@pytest.mark.parametrize(("centering", "mesh"), [("centering", (1, 1)), ("sinkhorn_knopp", (2, 4))])
def test_training_is_the_same(centering, mesh):
    """All metrics of three steps: losses, gradient norms, health; also on eight devices."""
    want = run_steps(centering, 0)
    for got, step in zip(run_steps(centering, 16, mesh), want, strict=True):
        for name, value in step.items():
            assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def step_bytes(prototypes: int, block: int) -> int:
    """Temporary memory of forward and backward through both losses, from the compiler."""
    head = DINOHead(prototypes, 16, 16, layers=1)
    params = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((1, 16))))["params"]
    x = jax.ShapeDtypeStruct((4096, 16), jnp.float32)

    def loss(x, params, teacher):
        student, teacher = (
            make_scores(*head.apply({"params": p}, x), block) for p in (params, teacher)
        )
        targets = jax.lax.stop_gradient(teacher.sinkhorn_knopp(TEMP))
        return ibot_loss(student, targets, jnp.ones(4096), 2)

    compiled = jax.jit(jax.grad(loss)).lower(x, params, params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_depend_on_the_number_of_prototypes():
    small, large = (step_bytes(k, 512) for k in (2048, 16384))
    weights = 16384 * 16 * 4
    assert large < small + 6 * weights  # the prototypes themselves and their gradient
    assert step_bytes(16384, 0) > 5 * large


def test_unit_features_reach_the_scores():
    head = DINOHead(PROTOTYPES, 8, WIDTH)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    factors = head.apply(head.init(jax.random.key(1), x), x)
    factored = make_scores(*factors, 6)
    np.testing.assert_allclose(jnp.linalg.norm(factored.features, axis=-1), 1.0, rtol=1e-6)
    logits = make_scores(*factors).logits
    np.testing.assert_allclose(dense(factored).logits, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(l2_normalize(factored.features), factored.features, rtol=1e-6)


@pytest.mark.parametrize("valid", [None, jnp.arange(5) < jnp.array([[3], [5]])])
def test_mean_over_groups(valid):
    factored, _ = scores(9, 2, 5)
    want = dense(factored).group_mean(valid)
    np.testing.assert_allclose(factored.group_mean(valid), want, rtol=1e-5, atol=1e-6)
