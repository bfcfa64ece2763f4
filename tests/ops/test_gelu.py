"""GELU against the error function in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfc

from dinov2_jax.ops.gelu import gelu

POINTS = np.linspace(-12, 12, 4801)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 3e-7), (jnp.bfloat16, 2**-7)])
def test_value_and_slope(dtype, error):
    x = jnp.asarray(POINTS, dtype)
    exact = np.asarray(x, np.float64)
    below = 0.5 * erfc(-exact / np.sqrt(2))
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    value, vjp = jax.vjp(jax.jit(gelu), x)
    (slope,) = vjp(jnp.ones_like(x))
    assert value.dtype == slope.dtype == dtype
    size = np.maximum(np.abs(exact), 1)
    assert np.all(np.abs(np.asarray(value, np.float64) - exact * below) <= error * size)
    assert np.all(
        np.abs(np.asarray(slope, np.float64) - below - exact * density) <= 2 * error * size
    )


def test_extremes_are_finite():
    x = jnp.asarray([-1e38, -1e-38, 0, 1e-38, 1e38])
    assert np.all(np.isfinite(jax.grad(lambda x: gelu(x).sum())(x)))
    np.testing.assert_allclose(gelu(x), [0, -5e-39, 0, 5e-39, 1e38], atol=1e-38)
