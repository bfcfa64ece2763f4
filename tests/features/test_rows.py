"""A view of some rows reads what an array of these rows would give."""

import numpy as np
import pytest

from dinov2_jax.features.rows import RowView


@pytest.mark.parametrize(
    "index",
    [
        3,
        -1,
        slice(2, 5),
        slice(None, None, 2),
        [4, 0, 0],
        np.array([1, 2]),
        (slice(1, 3), 2),
        (2, 1),
    ],
)
def test_indexing_equals_that_of_an_array(index):
    whole = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    rows = np.array([0, 2, 3, 7, 8])
    view = RowView(whole, rows)
    np.testing.assert_array_equal(view[index], whole[rows][index])


def test_a_view_is_an_array_where_one_is_needed():
    whole = np.arange(12, dtype=np.float32).reshape(6, 2)
    view = RowView(whole, np.array([1, 5]))
    assert (len(view), view.shape, view.dtype, view.ndim) == (2, (2, 2), np.float32, 2)
    np.testing.assert_array_equal(np.asarray(view), [[2, 3], [10, 11]])
    assert np.asarray(view, np.float64).dtype == np.float64
    assert np.isfinite(view).all() and view[np.array([True, False])].tolist() == [[2, 3]]
    assert [row.tolist() for row in view] == [[2, 3], [10, 11]]
    with pytest.raises(ValueError, match="by a copy"):
        np.asarray(view, copy=False)
