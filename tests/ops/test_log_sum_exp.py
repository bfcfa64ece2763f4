"""Log-sum-exp against scipy, in both forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from dinov2_jax.ops.log_sum_exp import in_one_pass, in_two_passes, log_sum_exp


def draw(width: float) -> np.ndarray:
    """Rows that plain exp would overflow or lose."""
    rng = np.random.default_rng(3)
    return (rng.normal(0, width, (4, 3, 1000)) + rng.normal(0, 300, (4, 3, 1))).astype(np.float32)


@pytest.mark.parametrize("form", [in_one_pass, in_two_passes])
@pytest.mark.parametrize("width", [0.1, 5.0, 80.0])
def test_both_forms_equal_scipy(form, width):
    x = draw(width)
    peak, total = form(jnp.asarray(x))
    np.testing.assert_array_equal(peak[..., 0], x.max(-1))
    want = logsumexp(x.astype(np.float64), axis=-1) - x.max(-1)
    # 1,000 additions, each rounded to 6e-8 of the sum.
    np.testing.assert_allclose(np.log(total[..., 0]), want, rtol=0, atol=6e-5)


@pytest.mark.parametrize("form", [in_one_pass, in_two_passes])
def test_equal_values_and_a_single_one(form):
    x = jnp.full((2, 64), -1e30)
    peak, total = form(x)
    np.testing.assert_array_equal(peak, np.full((2, 1), -1e30, np.float32))
    np.testing.assert_array_equal(total, [[64.0]] * 2)
    peak, total = form(jnp.asarray([[7.0]]))
    assert (peak.item(), total.item()) == (7.0, 1.0)


def test_log_sum_exp_equals_scipy():
    x = draw(5.0)
    want = logsumexp(x.astype(np.float64), axis=-1)
    np.testing.assert_allclose(log_sum_exp(jnp.asarray(x)), want, rtol=1e-6)
