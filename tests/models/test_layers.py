"""Linear layers that leave work to, or take it from, the layers beside them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models import layers
from dinov2_jax.models.layers import Attention, Linear

X = jax.random.normal(jax.random.key(0), (2, 5, 8))


def drawn(module: nn.Module, *sets) -> dict:
    """Its parameters, none of which is 0."""
    shapes = jax.eval_shape(lambda key: module.init(key, X, *sets), jax.random.key(1))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    values = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, values)


@pytest.mark.parametrize("use_bias", [True, False])
def test_parts_apart_equal_the_packed_ones(use_bias):
    module = Linear(12, use_bias, parts=3)
    params = drawn(module)
    want, pull = jax.vjp(module.apply, params, X)
    got, pull_apart = jax.vjp(lambda *args: module.apply(*args, method="each_part"), params, X)
    assert [x.shape for x in got] == [(2, 5, 4)] * 3
    np.testing.assert_allclose(jnp.concatenate(got, -1), want, rtol=1e-5, atol=1e-6)
    slope = jax.random.normal(jax.random.key(3), want.shape)
    gradients = pull(slope), pull_apart(jnp.split(slope, 3, -1))
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_attention_without_training_is_the_same_on_a_gpu(monkeypatch):
    module, sets = Attention(2), [(1, 3), (1, 2)]
    params = drawn(module, sets)
    want = module.apply(params, X, sets)
    monkeypatch.setattr(layers, "platform_in_use", lambda: "gpu")
    np.testing.assert_allclose(module.apply(params, X, sets), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_bias", [True, False])
def test_norm_before_and_gain_behind_may_go_into_the_weights(use_bias):
    module = Linear(12, use_bias)
    params = drawn(module)
    draw = [jax.random.normal(jax.random.key(i), (8 if i < 6 else 12,)) for i in (4, 5, 6)]
    scale, shift, gain = draw
    got = module.apply(params, X, (scale, shift), gain)
    want = gain * module.apply(params, X * scale + shift)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert jnp.isfinite(got).all()
