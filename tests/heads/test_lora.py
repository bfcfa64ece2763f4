"""LoRA: nothing changes at first, and merged weights are the adapted layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.heads.finetune.lora import TARGETS, Lora, init_factors, merge
from dinov2_jax.models.layers import Linear
from tests.features.tiny import backbone

IMAGES = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)


def forward(model, params):
    return model.apply({"params": params}, jnp.asarray(IMAGES))


def random_factors(params, lora):
    rng = np.random.default_rng(7)
    shapes = init_factors(params, lora, 0)
    return jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), shapes)


def test_b_of_zero_is_the_frozen_model_exactly():
    found, lora = backbone(), Lora(rank=4)
    factors = init_factors(found.params, lora, 0)
    assert set(factors) == {"attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"}
    assert all(np.abs(pair["a"]).max() > 0.1 for pair in factors.values())
    merged = merge(found.params, factors, lora)
    before, after = forward(found.model, found.params), forward(found.model, merged)
    for name in ("cls", "patches"):
        np.testing.assert_array_equal(before[name], after[name])


def test_merged_weights_are_the_unmerged_layers():
    """Every projection's own output plus (alpha / rank) x A B, added where the layer is called."""
    found, lora = backbone(), Lora(rank=3, alpha=7.0)
    factors = random_factors(found.params, lora)
    names = {target.split("/")[1]: target for target in factors}
    calls = dict.fromkeys(names, 0)

    def add_update(call, args, kwargs, context):
        out = call(*args, **kwargs)
        name = context.module.name
        if not isinstance(context.module, Linear) or name not in names:
            return out
        # One token: the shapes of the parameters are looked up.
        if context.method_name != "__call__" or out.shape[-2] == 1:
            return out
        pair, layer = factors[names[name]], calls[name]
        calls[name] += 1  # blocks are unrolled, so calls come in their order
        return out + 7.0 / 3 * (args[0] @ pair["a"][layer]) @ pair["b"][layer]

    unrolled = found.model.clone(scan_blocks=False)
    with nn.intercept_methods(add_update):
        unmerged = forward(unrolled, found.params)
    assert set(calls.values()) == {found.model.depth}
    merged = forward(found.model, merge(found.params, factors, lora))
    plain = forward(found.model, found.params)
    for name in ("cls", "patches"):
        np.testing.assert_allclose(merged[name], unmerged[name], rtol=2e-5, atol=2e-5)
        assert np.abs(plain[name] - merged[name]).max() > 0.1


def test_only_targets_are_adapted():
    found, lora = backbone(), Lora(rank=2, targets=("attn/qkv", "mlp/w12"))
    factors = random_factors(found.params, lora)
    assert list(factors) == ["attn/qkv"]
    merged = merge(found.params, factors, lora)
    changed = {
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_flatten_with_path(found.params)[0],
            jax.tree.leaves(merged),
            strict=True,
        )
        if not np.array_equal(a, b)
    }
    assert changed == {"['blocks']['attn']['qkv']['kernel']"}


def test_wrong_settings_are_one_sentence():
    with pytest.raises(ValueError, match="'attn/key'\\] are not known; choose some of attn/qkv"):
        Lora(targets=("attn/key",))
    with pytest.raises(ValueError, match="rank 0 trains nothing"):
        Lora(rank=0)
    with pytest.raises(ValueError, match=r"none of the LoRA targets mlp/w3; .* has fc1, fc2"):
        init_factors(backbone().params, Lora(targets=("mlp/w3",)), 0)
    assert set(TARGETS) >= set(init_factors(backbone().params, Lora(), 0))
