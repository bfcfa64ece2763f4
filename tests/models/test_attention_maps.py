"""Attention maps against a computation in numpy, on every layout of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models import attention_maps as module
from dinov2_jax.models.attention_maps import attention_rows
from dinov2_jax.models.positions import resize_positions
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks

DEPTH, HEADS, PATCHES = 3, 2, 6


def attention_maps(*args: Any) -> Any:
    """Compiled: run op by op, each of them would be compiled on its own."""
    model, params, images, *rest = args
    return jax.jit(lambda p, x: module.attention_maps(model, p, x, *rest))(params, images)


def tiny(registers: int, **changes: Any) -> tuple[VisionTransformer, Any, jax.Array]:
    """A model with weights that make attention uneven, and two images of 2 x 3 patches."""
    options: dict[str, Any] = {
        **{"dim": 16, "depth": DEPTH, "heads": HEADS, "patch_size": 7, "image_size": 21},
        **{"layerscale": 1.0, "registers": registers},
    }
    model = VisionTransformer(**options | changes)
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(2, 14, 21, 3)), jnp.float32)
    shapes = jax.eval_shape(model.clone(attention="xla").init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)
    return model, params, images


def by_hand(model: VisionTransformer, params: Any, images: jax.Array, block: int) -> np.ndarray:
    """Softmax of q k^T in float64, [B, H, N, N]; only the block's input comes from the model."""
    if block:
        forward = jax.jit(lambda p, x: model.apply({"params": p}, x, intermediate=(block - 1,)))
        tokens = np.asarray(forward(params, images)["blocks"][0][0], np.float64)
    else:
        tokens = np.asarray(embedded(model, params, images), np.float64)
    layer = jax.tree.map(lambda p: np.asarray(p[block], np.float64), params["blocks"])
    mean, variance = tokens.mean(-1, keepdims=True), tokens.var(-1, keepdims=True)
    normed = (tokens - mean) / np.sqrt(variance + 1e-6)
    normed = normed * layer["norm1"]["scale"] + layer["norm1"]["bias"]
    qkv = normed @ layer["attn"]["qkv"]["kernel"] + layer["attn"]["qkv"]["bias"]
    size = model.dim // model.heads
    heads = []
    for head in range(model.heads):
        q = qkv[..., head * size : (head + 1) * size]
        k = qkv[..., model.dim + head * size : model.dim + (head + 1) * size]
        logits = q @ k.transpose(0, 2, 1) / np.sqrt(size)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True))
    return np.stack(heads, axis=1)


def embedded(model: VisionTransformer, params: Any, images: jax.Array) -> np.ndarray:
    """Tokens before the first block; the images have the table's columns but not its rows."""
    b, h, w, c = images.shape
    p = model.patch_size
    x = np.asarray(images).reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    embed = jax.tree.map(np.asarray, params["patch_embed"])
    patches = x.reshape(b, -1, p * p * c) @ embed["kernel"] + embed["bias"]
    table = resize_positions(params["pos_embed"], (h // p, w // p), model.interpolate_offset, False)
    table = np.asarray(table)
    first = [params["cls_token"] + table[:, :1]]
    first += [params["register_tokens"]] if model.registers else []
    first = [np.broadcast_to(t, (b, *t.shape[1:])) for t in first]
    return np.concatenate([*first, patches + table[:, 1:]], axis=1)


@pytest.mark.parametrize("block", [0, 1, -1])
@pytest.mark.parametrize("registers", [0, 4])
def test_equal_to_numpy(registers: int, block: int) -> None:
    model, params, images = tiny(registers)
    want, first = by_hand(model, params, images, block % DEPTH), 1 + registers
    every = range(first + PATCHES)
    rows = jax.jit(lambda p, x: attention_rows(model, p, x, every, block))(params, images)
    np.testing.assert_allclose(rows, want, atol=2e-6)
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)
    maps = attention_maps(model, params, images, block)
    assert maps.shape == (2, HEADS, PATCHES) and maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, want[:, :, 0, first:], atol=2e-6)
    maps = attention_maps(model, params, images, block, [5, 0])
    np.testing.assert_allclose(maps, want[:, :, [first + 5, first], first:], atol=2e-6)
    if registers:
        maps = attention_maps(model, params, images, block, "registers")
        np.testing.assert_allclose(maps, want[:, :, 1:first, first:], atol=2e-6)


@pytest.mark.parametrize("block", [0, 2])
def test_the_same_of_stacked_unrolled_and_apart(block: int) -> None:
    model, params, images = tiny(2)
    want = attention_maps(model, params, images, block)
    unrolled = model.clone(scan_blocks=False)
    apart = unstack_blocks(params)
    for other, weights in ((unrolled, params), (model, apart), (unrolled, apart)):
        found = attention_maps(other, weights, images, block)
        np.testing.assert_allclose(found, want, atol=1e-6)


def test_other_layers_keep_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend of the model runs in the blocks before, none in the chosen one."""
    from dinov2_jax.models import layers

    calls = []

    def counting(q: Any, k: Any, v: Any, backend: str) -> Any:
        calls.append(backend)
        return v

    monkeypatch.setattr(layers, "attention", counting)
    model, params, images = tiny(0, attention="looped", scan_blocks=False)
    calls.clear()
    attention_maps(model, params, images, 2)
    assert calls == ["looped", "looped"]


def test_bf16_stays_close_and_sums_to_one() -> None:
    model, params, images = tiny(1)
    half = model.clone(dtype=jnp.bfloat16)
    rows, want = jax.jit(lambda p, x: [attention_rows(m, p, x, [0, 3]) for m in (half, model)])(
        params, images
    )
    assert rows.dtype == jnp.float32
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(rows, want, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 3}, "block 3 does not exist; the model has 3, so choose one from -3 to 2"),
        ({"source": "registers"}, 'no registers to look from; use source="cls"'),
        ({"source": "patch"}, "source 'patch' is unknown"),
        ({"source": [0, 6]}, r"names 6, but the image has patches 0 to 5 \(2 rows of 3\)"),
        ({"source": []}, "names no patch"),
    ],
)
def test_what_does_not_exist_is_refused(changes: dict[str, Any], message: str) -> None:
    model, params, images = tiny(0)
    with pytest.raises(ValueError, match=message):
        module.attention_maps(model, params, images, **changes)
