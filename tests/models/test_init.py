"""Initial distributions and parameter counts (FB dinov2/models, dinov2/layers)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from dinov2_jax.models.head import DINOHead
from dinov2_jax.models.layers import swiglu_hidden_dim
from dinov2_jax.models.vit import VARIANTS, VisionTransformer, from_config

COUNTS = {
    ("vit_small", "mlp", 0): 22_056_576,
    ("vit_small", "mlp", 4): 22_058_112,
    ("vit_base", "mlp", 0): 86_580_480,
    ("vit_large", "mlp", 0): 304_368_640,
    ("vit_large", "swiglu", 0): 304_794_880,
    ("vit_giant2", "swiglu", 0): 1_136_480_768,
    ("vit_giant2", "swiglu", 4): 1_136_486_912,
}


@pytest.mark.parametrize(("variant", "ffn", "registers"), COUNTS)
def test_parameter_counts(variant, ffn, registers):
    shape = VARIANTS[variant]
    model = VisionTransformer(
        dim=shape.dim, depth=shape.depth, heads=shape.heads, image_size=518, ffn=ffn,
        registers=registers,
    )  # fmt: skip
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert total == COUNTS[variant, ffn, registers]


def test_swiglu_widths():
    assert [swiglu_hidden_dim(d) for d in (384, 768, 1024, 1536)] == [1024, 2048, 2736, 4096]


@pytest.fixture(scope="module")
def params():
    model = VisionTransformer(
        dim=192, depth=3, heads=3, patch_size=14, image_size=112, registers=4, layerscale=1e-5
    )
    init = jax.jit(model.init)
    return init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]


def test_linear_weights_are_normal_beyond_two_sigma(params):
    kernel = np.asarray(params["blocks"]["mlp"]["fc1"]["kernel"])
    assert kernel.std() == pytest.approx(0.02, rel=0.02)
    # An ordinary normal has 4.6 % of its mass beyond 2 sigma; a truncated one none.
    assert np.mean(np.abs(kernel) > 0.04) == pytest.approx(0.0455, rel=0.1)
    assert not np.asarray(params["blocks"]["mlp"]["fc1"]["bias"]).any()
    assert len({float(kernel[i, 0, 0]) for i in range(3)}) == 3  # blocks differ


def test_tokens_positions_and_patch_embedding(params):
    assert np.std(params["pos_embed"]) == pytest.approx(0.02, rel=0.05)
    for name in ("cls_token", "register_tokens"):
        assert np.std(params[name]) == pytest.approx(1e-6, rel=0.2)
    assert not np.asarray(params["mask_token"]).any()
    bound = 1 / math.sqrt(3 * 14**2)
    for value in params["patch_embed"].values():
        assert np.abs(value).max() <= bound
        assert np.std(value) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_norms_and_layerscale(params):
    assert np.all(np.asarray(params["norm"]["scale"]) == 1)
    assert np.all(np.asarray(params["blocks"]["ls1"]["gamma"]) == np.float32(1e-5))


def test_head():
    head = DINOHead(512, hidden_dim=64, bottleneck_dim=256)
    params = head.init(jax.random.key(1), jnp.zeros((1, 32)))["params"]
    assert np.all(np.asarray(params["last_layer"]["weight_g"]) == 1)
    v = np.asarray(params["last_layer"]["weight_v"])
    assert np.abs(v).max() <= 1 / 16
    assert v.std() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.02)
    features = jax.random.normal(jax.random.key(2), (9, 32))
    unit, prototypes = head.apply({"params": params}, features)
    logits = unit @ prototypes.T
    assert np.abs(logits).max() <= 1 + 1e-6  # cosines at gain 1


def test_wrong_sizes_and_names_are_named():
    model = VisionTransformer(dim=24, depth=1, heads=3, patch_size=14)
    with pytest.raises(ValueError, match=r"30x28 px .* patches of 14 px.*28x28"):
        model.init(jax.random.key(0), jnp.zeros((1, 30, 28, 3)))
    with pytest.raises(ValueError, match=r"vit_huge.*vit_large"):
        from_config({"variant": "vit_huge"}, 224)


def test_a_configuration_from_before_the_attention_field_and_the_remat_policies():
    stored = default.get_config().model.to_dict()
    assert from_config(stored | {"remat": False}, 224).remat == "none"
    assert from_config(stored | {"remat": True}, 224).remat == "blocks"
    del stored["attention"]
    assert from_config(stored, 224).attention == "auto"
    assert from_config(stored | {"attention": "cudnn"}, 224).attention == "cudnn"
