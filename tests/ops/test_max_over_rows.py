"""The maximum of each column."""

import jax
import numpy as np
import pytest

from dinov2_jax.ops.max_over_rows import max_over_rows


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (7, 5), (64, 3), (3, 13, 4), (2, 1, 3), (9,)])
def test_max_of_each_column(shape):
    """The CPU compares halves of the rows, also of odd numbers; an empty column gives -inf."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[x < -1] = -np.inf
    want = x.reshape(-1, shape[-1]).max(axis=0)
    program = jax.jit(max_over_rows).lower(x)
    np.testing.assert_array_equal(program.compile()(x), want)
    halved = len(shape) > 1 and shape[-2] > 1
    assert ("slice" in program.as_text()) == halved
