"""Stochastic depth by subset, and the packed pass."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from dinov2_jax.models.block import add_residual
from dinov2_jax.models.packing import pack, unpack
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks
from dinov2_jax.ops.stochastic_depth import kept_crops, sample_kept
from dinov2_jax.parallel.mesh import BATCH, make_mesh


def group_keys(groups: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), groups)


def test_number_of_kept_crops():
    # As FB layers/block.py: 64 and 256 crops at 0.3; truncation of a float product; at least one.
    assert [kept_crops(64, 0.3), kept_crops(256, 0.3), kept_crops(2, 0.9)] == [44, 179, 1]


def test_subset_is_exact_and_scaled():
    crops = [jnp.zeros((3, 10, 4, 6)), jnp.zeros((3, 8, 2, 6))]
    gamma = jnp.arange(1.0, 7.0)

    def branch(packed, sets):
        # int(10 * 0.6), int(8 * 0.6): only the kept
        assert sets == [(6, 4), (4, 2)] and packed.shape == (3, 6 * 4 + 4 * 2, 6)
        return gamma * jnp.ones_like(packed)

    sets = [(10, 4), (8, 2)]
    out = unpack(add_residual(pack(crops), sets, branch, group_keys(3), 0.4), sets)
    for x, kept in zip(out, (6, 4), strict=True):
        total = x.shape[1]
        rows = np.asarray(x).reshape(3, total, -1, 6)
        changed = rows.any(axis=(2, 3))
        assert changed.sum(axis=1).tolist() == [kept] * 3
        want = np.broadcast_to(total / kept * np.asarray(gamma), rows[changed].shape)
        np.testing.assert_allclose(rows[changed], want, rtol=1e-6)


def test_every_group_draws_its_own_subset():
    kept = np.asarray(sample_kept(group_keys(4), 32, 16))
    assert len({tuple(sorted(row)) for row in kept.tolist()}) == 4
    assert all(len(set(row)) == 16 for row in kept.tolist())


def test_a_group_draws_the_same_whatever_is_beside_it():
    keys = group_keys(4)
    np.testing.assert_array_equal(sample_kept(keys, 32, 16)[2:3], sample_kept(keys[2:3], 32, 16))


def test_every_crop_set_draws_its_own_subset():
    crops = [jnp.zeros((1, 32, 2, 4))] * 2
    sets = [(32, 2)] * 2
    out = add_residual(pack(crops), sets, lambda x, _: x + 1, group_keys(1), 0.5)
    one, other = unpack(out, sets)
    assert not np.array_equal(one.any((2, 3)), other.any((2, 3)))


def test_every_branch_and_block_draws_its_own_subset():
    """With one residual branch left in the whole network, the rows that it changes differ."""
    model = VisionTransformer(
        dim=24, depth=2, heads=3, patch_size=7, image_size=14, layerscale=1.0, drop_path_rate=0.5
    )
    images = jax.random.normal(jax.random.key(1), (1, 32, 14, 14, 3))
    params = model.init(jax.random.key(0), images[0])["params"]
    apply = jax.jit(lambda p: model.apply({"params": p}, [images], drop_path_keys=group_keys(1)))
    plain, changed = params["blocks"], []
    for kept_scale, block in ((name, i) for name in ("ls1", "ls2") for i in range(2)):
        scales = {
            name: {"gamma": jnp.zeros((2, 24)).at[block].set(float(name == kept_scale))}
            for name in ("ls1", "ls2")
        }
        tokens = apply(params | {"blocks": {**plain, **scales}})[0]["prenorm"]
        none = {name: {"gamma": jnp.zeros((2, 24))} for name in ("ls1", "ls2")}
        still = apply(params | {"blocks": {**plain, **none}})[0]["prenorm"]
        rows = np.asarray((tokens != still).any((2, 3)))[0]
        assert rows.sum() == 16
        changed.append(tuple(rows))
    assert len(set(changed)) == 4


def test_bf16_keeps_what_a_small_layerscale_adds():
    """At 1e-5 the cls tokens of different pictures differ by less than bf16 can tell apart."""
    exact = VisionTransformer(dim=96, depth=3, heads=3, image_size=28, layerscale=1e-5)
    images = jax.random.normal(jax.random.key(1), (8, 28, 28, 3))
    params = exact.init(jax.random.key(0), images)["params"]
    rounded = exact.clone(dtype=jnp.bfloat16)
    cls, want = (jax.jit(m.apply)({"params": params}, images)["cls"] for m in (rounded, exact))
    assert cls.dtype == jnp.float32
    assert len(np.unique(np.asarray(cls), axis=0)) == 8
    shared = want.mean(0)
    error = jnp.linalg.norm(cls - want) / jnp.linalg.norm(want - shared)
    assert error < 0.05  # of what tells the pictures apart; bf16 rounds by 0.004 a number


def test_all_crops_are_kept_equally_often():
    kept = sample_kept(group_keys(400), 8, 4)
    share = np.bincount(np.asarray(kept).ravel(), minlength=8) / 400
    np.testing.assert_allclose(share, 0.5, atol=0.1)  # 4 sigma


@pytest.fixture(scope="module")
def model_and_params():
    model = VisionTransformer(
        dim=24, depth=3, heads=3, patch_size=7, image_size=28, layerscale=0.5, drop_path_rate=0.4
    )
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]
    return model, params


def test_packed_pass_equals_separate_passes(model_and_params):
    model, params = model_and_params
    large = jax.random.normal(jax.random.key(1), (2, 3, 28, 28, 3))
    small = jax.random.normal(jax.random.key(2), (2, 5, 14, 14, 3))
    together = jax.jit(model.apply)({"params": params}, [large, small])
    for got, images in zip(together, (large, small), strict=True):
        alone = model.apply({"params": params}, images.reshape(-1, *images.shape[2:]))
        for name in ("cls", "patches"):
            want = alone[name].reshape(got[name].shape)
            np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("uniform", [True, False])
def test_scan_remat_and_unrolled_blocks_agree(model_and_params, uniform):
    model, params = model_and_params
    images = [jax.random.normal(jax.random.key(1), (2, 4, 28, 28, 3))]
    keys, results = group_keys(2), []
    for scan, remat in ((False, "none"), (True, "none"), (True, "pointwise"), (True, "blocks")):
        variant = model.clone(scan_blocks=scan, remat=remat, drop_path_uniform=uniform)

        def total(p, variant=variant):
            (out,) = variant.apply({"params": p}, images, drop_path_keys=keys)
            return jnp.sum(out["cls"] ** 2)

        results.append(jax.jit(jax.value_and_grad(total))(params))
    for value, grads in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-6)
        for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(results[0][1]), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def backbone_gradient(rate: float, groups: int):
    """A lowered gradient of all cls tokens, blocks unrolled: XLA counts a loop's body once."""
    model = VisionTransformer(
        dim=64, depth=3, heads=1, patch_size=7, image_size=28, drop_path_rate=rate,
        scan_blocks=False,
    )  # fmt: skip
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]

    def loss(params, images, keys):
        return jnp.sum(model.apply({"params": params}, [images], drop_path_keys=keys)[0]["cls"])

    return jax.jit(jax.grad(loss)), params, jnp.zeros((groups, 20, 28, 28, 3)), group_keys(groups)


@pytest.mark.parametrize("rate", [0.3, 0.4])
def test_dropped_branches_cost_nothing(rate):
    """By the compiler's count: all is in the blocks but for the patch embedding, 1 %."""
    flops = []
    for r in (0.0, rate):
        gradient, *arguments = backbone_gradient(r, 1)
        flops.append(gradient.lower(*arguments).compile().cost_analysis()["flops"])
    assert 1 - flops[1] / flops[0] == pytest.approx(rate, abs=0.02)


def test_subsets_stay_on_their_device():
    """Eight groups on eight devices: what is sent is the gradient's sum, and nothing else."""
    mesh = make_mesh(8)
    gradient, params, images, keys = backbone_gradient(0.3, 8)
    with jax.set_mesh(mesh):
        images = jax.device_put(images, NamedSharding(mesh, BATCH))
        program = gradient.lower(params, images, keys).compile().as_text()
    kinds = set(re.findall(r"\b(all-\w+|collective-\w+|reduce-scatter|ragged-all-\S+?)\(", program))
    assert kinds <= {"all-reduce"}
    assert kinds


def test_drop_rates(model_and_params):
    model, _ = model_and_params
    np.testing.assert_allclose(model.drop_rates(), [0.4, 0.4, 0.4])
    np.testing.assert_allclose(model.clone(drop_path_uniform=False).drop_rates(), [0, 0.2, 0.4])


def test_blocks_apart_are_the_stacked_ones(model_and_params):
    model, params = model_and_params
    images = jax.random.normal(jax.random.key(3), (2, model.image_size, model.image_size, 3))
    want = model.apply({"params": params}, images)["patches"]
    got = model.apply({"params": unstack_blocks(params)}, images)["patches"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 2), (1, 2)])
def test_scanned_blocks_that_are_kept_equal_the_unrolled_ones(model_and_params, wanted):
    model, params = model_and_params
    images = jax.random.normal(jax.random.key(3), (2, 28, 28, 3))
    scanned, unrolled = (
        jax.jit(model.clone(scan_blocks=scan).apply, static_argnames="intermediate")(
            {"params": params}, images, intermediate=wanted
        )
        for scan in (True, False)
    )
    np.testing.assert_allclose(scanned["patches"], unrolled["patches"], rtol=0, atol=1e-5)
    for got, want in zip(scanned["blocks"], unrolled["blocks"], strict=True):
        np.testing.assert_allclose(got[0], want[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("wanted", [(0,), (0, 2), (1, 2)])
def test_scanned_blocks_do_not_depend_on_which_are_kept(model_and_params, wanted):
    model, params = model_and_params
    images = jax.random.normal(jax.random.key(3), (2, 28, 28, 3))
    run = jax.jit(model.clone(scan_blocks=True).apply, static_argnames="intermediate")
    some, every, none = (
        run({"params": params}, images, intermediate=kept)
        for kept in (wanted, tuple(range(model.depth)), ())
    )
    for place, block in enumerate(wanted):
        for got, want in zip(some["blocks"][place], every["blocks"][block], strict=True):
            np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(some["prenorm"], none["prenorm"])


def test_a_scan_stores_only_the_blocks_that_are_asked_for():
    """12 blocks of 8 x 257 tokens of width 48 would take 4.7 MB, the last one a twelfth."""
    model = VisionTransformer(dim=48, depth=12, heads=3, image_size=224)
    images = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)

    def temporaries(wanted: tuple[int, ...]) -> int:
        program = jax.jit(lambda p, x: model.apply(p, x, intermediate=wanted)["blocks"])
        return program.lower(params, images).compile().memory_analysis().temp_size_in_bytes

    tokens = 8 * 257 * 48 * 4
    assert temporaries((11,)) < temporaries(tuple(range(12))) - 6 * tokens
