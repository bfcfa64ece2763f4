"""Packing crop sets, and the rows that fill up on a GPU: they change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models import packing
from dinov2_jax.models.packing import kept_rows, pack, row_scales, unpack
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ops import layout
from dinov2_jax.ops.stochastic_depth import add_rows, take_rows


@pytest.fixture
def on_gpu(monkeypatch):
    """As if the program were for a GPU."""
    monkeypatch.setattr(layout, "platform_in_use", lambda: "gpu")


def test_unpack_is_the_inverse(on_gpu):
    crops = [jnp.arange(2 * b * n * 3.0).reshape(2, b, n, 3) for b, n in ((3, 5), (4, 2))]
    packed = pack(crops)
    assert packed.shape == (2, 24, 3)  # 23 tokens
    assert not packed[:, 23:].any()
    for got, want in zip(unpack(packed, [(3, 5), (4, 2)]), crops, strict=True):
        np.testing.assert_array_equal(got, want)


def test_kept_rows_are_whole_crops_and_fill_up_beyond_the_end(on_gpu):
    sets, keys = [(4, 3), (5, 2)], jax.random.split(jax.random.key(0), 2)
    rows = np.asarray(kept_rows(keys, sets, 0.5, 24))
    assert rows.shape == (2, 16)  # 2 crops of 3 tokens, 2 of 2, filled up
    for row in rows:
        large, small, fill = row[:6].reshape(2, 3), row[6:10].reshape(2, 2), row[10:]
        assert (large % 3 == range(3)).all() and (large < 12).all()
        assert ((small - 12) % 2 == range(2)).all() and (small >= 12).all() and (small < 22).all()
        assert (fill >= 24).all() and len(set(row)) == 16
    scales = row_scales(sets, 0.5, 16)
    np.testing.assert_array_equal(scales, [2.0] * 6 + [2.5] * 4 + [0.0] * 6)


def test_rows_beyond_the_end_have_no_effect_and_no_gradient():
    x = jax.random.normal(jax.random.key(0), (1, 6, 4))
    rows, scale = jnp.array([[1, 4, 6, 7]]), jnp.array([2.0, 1.0, 0.0, 0.0])
    branch = jax.random.normal(jax.random.key(1), (1, 4, 4))

    def total(x, branch):
        kept, x = take_rows(x, rows)
        return (add_rows(x, rows, scale, branch + kept) ** 2).sum()

    def plain(x, branch):
        for i, row in enumerate((1, 4)):
            x = x.at[:, row].add(scale[i] * (branch[:, i] + x[:, row]))
        return (x**2).sum()

    got = jax.value_and_grad(total, (0, 1))(x, branch)
    want = jax.value_and_grad(plain, (0, 1))(x, branch)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_filled_up_the_network_and_its_gradients_are_the_same(rate, monkeypatch):
    model = VisionTransformer(
        dim=24, depth=2, heads=3, patch_size=7, image_size=21, layerscale=0.5, drop_path_rate=rate
    )
    large = jax.random.normal(jax.random.key(1), (2, 3, 21, 21, 3))
    small = jax.random.normal(jax.random.key(2), (2, 5, 14, 14, 3))
    params = model.init(jax.random.key(0), large[0])["params"]
    keys = jax.random.split(jax.random.key(3), 2) if rate else None
    weights = jax.random.normal(jax.random.key(4), (24,))

    def total(params):
        outs = model.apply({"params": params}, [large, small], drop_path_keys=keys)
        # The sum of normalised features is 0, whatever the weights: they are weighted.
        return sum(
            (weights * (out["cls"].sum(1) + out["patches"].sum((1, 2)))).sum() for out in outs
        )

    def both():
        return jax.tree.leaves(jax.jit(jax.value_and_grad(total))(params))

    assert packing.filled_rows(45) == 45
    want = both()
    monkeypatch.setattr(layout, "platform_in_use", lambda: "gpu")
    assert packing.filled_rows(45) == 48
    for got, other in zip(both(), want, strict=True):
        np.testing.assert_allclose(got, other, rtol=0, atol=1e-6 * np.abs(other).max())
