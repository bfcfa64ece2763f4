"""The core of LayerNorm and its gradient by hand, against Flax and automatic differentiation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.ops import layer_norm
from dinov2_jax.ops.layer_norm import normalize


@pytest.fixture(params=["cpu", "gpu"])
def platform(request, monkeypatch):
    """The statistics of each platform; all of them run everywhere."""
    monkeypatch.setattr(layer_norm, "platform_in_use", lambda: request.param)


def flaxs(x, epsilon):
    norm = nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, use_scale=False, use_bias=False)
    return norm.apply({}, x)


def example(offset=0.0, width=48):
    """Rows of very different sizes, all moved by `offset` deviations."""
    keys = jax.random.split(jax.random.key(0), 2)
    size = jnp.exp(2 * jax.random.normal(keys[1], (2, 37, 1)))
    return size * (jax.random.normal(keys[0], (2, 37, width)) + offset)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
def test_it_is_flaxs(offset, epsilon, platform):
    x = example(offset)
    want = flaxs(x, epsilon)
    close = 1e-6 * max(offset, 5)  # a mean of 30 deviations has been rounded by 2e-6 of one
    np.testing.assert_allclose(normalize(x, epsilon, jnp.float32), want, rtol=0, atol=close)
    value, _ = jax.vjp(lambda x: normalize(x, epsilon, jnp.float32), x)
    np.testing.assert_allclose(value, want, rtol=0, atol=close)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_gradient_is_that_of_automatic_differentiation(offset, platform):
    x = example(offset)
    weights = jax.random.normal(jax.random.key(5), x.shape)
    got = jax.grad(lambda x: (weights * normalize(x, 1e-6, jnp.float32)).sum())(x)
    want = jax.grad(lambda x: (weights * flaxs(x, 1e-6)).sum())(x)
    error = np.abs(got - want).max(-1) / np.abs(want).max(-1)
    assert error.max() < 1e-5


def test_equal_numbers_have_no_deviation(platform):
    """Rows that fill up a packed array are zeros, or what a bias makes of them."""
    for number in (0.0, 0.1):
        x = jnp.full((3, 8), number)
        value, vjp = jax.vjp(lambda x: normalize(x, 1e-6, jnp.float32), x)
        np.testing.assert_allclose(value, 0, atol=1e-4)
        assert np.isfinite(vjp(jnp.ones_like(x))[0]).all()


def test_bf16_results_have_fp32_sums(platform):
    x = example(30.0)
    low = normalize(x, 1e-6, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), flaxs(x, 1e-6), rtol=2**-8, atol=1e-5)
    gradient = jax.grad(lambda x: normalize(x, 1e-6, jnp.bfloat16).astype(jnp.float32).sum())(x)
    assert gradient.dtype == jnp.float32


def test_the_backward_pass_keeps_the_result_and_a_number_a_row(platform):
    x = example()
    kept = jax.eval_shape(lambda x: jax.vjp(lambda x: normalize(x, 1e-6, jnp.bfloat16), x)[1], x)
    sizes = {leaf.dtype.name: leaf.size for leaf in jax.tree.leaves(kept)}
    assert sizes == {"bfloat16": x.size, "float32": 2 * 37}
