"""Segmentation and depth heads against the reference's vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models.depth import DPT, LinearDepth, to_image_size
from dinov2_jax.models.maps import Level, center_padding, feature_levels, pad_to_patches, resize
from dinov2_jax.models.segmentation import SegmentationHead
from dinov2_jax.weights.dense import from_released, kind_of, to_released
from tests.models.dense_vectors import (
    DPT_HIGH,
    FLIP_HIGH,
    LOW,
    backbone,
    channels_last,
    close,
    levels,
    places,
    read,
    sizes,
    under,
)


@pytest.fixture(scope="module")
def vectors(golden):
    return read(golden)


def head(vectors, name):
    tensors = under(vectors, f"{name}/params/")
    return tensors, *from_released(tensors, kind_of(set(tensors)))


def test_padding(vectors):
    patch = vectors["backbone/params/patch_embed.proj.weight"].shape[-1]
    for row in vectors["center_padding/table"]:
        h, w, top, bottom, left, right, *padded = row
        assert center_padding(int(h), patch) == (top, bottom)
        assert center_padding(int(w), patch) == (left, right)
        assert [h + top + bottom, w + left + right] == padded
    for size in sizes(vectors):
        padded = pad_to_patches(channels_last(vectors[f"{size}/image"]), patch)
        np.testing.assert_array_equal(padded, channels_last(vectors[f"{size}/padded"]))


def test_features(vectors):
    model, params = backbone(vectors)
    for size in sizes(vectors):
        image = channels_last(vectors[f"{size}/image"])
        for kind, norm in (("raw", False), ("normed", True)):
            blocks = tuple(sorted(int(i) for i in places(vectors, rf"{size}/{kind}(\d+)")))
            found = jax.jit(lambda x, b=blocks, n=norm: feature_levels(model, params, x, b, n))(
                image
            )
            for i, level in zip(blocks, found, strict=True):
                close(level.patches, channels_last(vectors[f"{size}/{kind}{i}"]), 3e-6)
                if not norm:
                    close(level.cls, vectors[f"{size}/raw_cls{i}"], 3e-6)


@pytest.mark.parametrize(("name", "count"), [("seg_linear", 1), ("seg_ms", 4)])
def test_segmentation(vectors, name, count):
    _, params, statistics = head(vectors, name)
    module = SegmentationHead(len(params["bias"]))
    for size in sizes(vectors):
        maps = [x.patches for x in levels(vectors, size, count, "normed")]
        logits, same = module.apply({"params": params}, maps, statistics)
        assert same is statistics
        close(logits, channels_last(vectors[f"{name}/{size}/head_logits"]), 3e-6)
        expected = channels_last(vectors[f"{name}/{size}/logits"])
        close(resize(logits, expected.shape[1:3]), expected, 3e-6)


@pytest.mark.parametrize(("name", "count"), [("seg_linear", 1), ("seg_ms", 4)])
def test_batch_statistics(vectors, name, count):
    _, params, statistics = head(vectors, name)
    train = under(vectors, f"{name}/train/")
    size = "x".join(map(str, train["labels"].shape[2:]))
    maps = [x.patches for x in levels(vectors, size, count, "normed")]
    module = SegmentationHead(len(params["bias"]))
    logits, after = module.apply({"params": params}, maps, statistics, train=True)
    close(logits, channels_last(train["head_logits"]), 3e-6)
    close(after.mean, train["after/decode_head.bn.running_mean"], 6e-7)
    close(after.var, train["after/decode_head.bn.running_var"], 6e-7)
    assert after.batches == train["after/decode_head.bn.num_batches_tracked"]


@pytest.mark.parametrize("layers", [1, 4])
def test_linear_depth(vectors, layers):
    name = f"depth_linear{layers}"
    _, params, _ = head(vectors, name)
    for size in sizes(vectors):
        given = levels(vectors, size, layers)
        highs = [int(high) for high in places(vectors, rf"{name}/{size}/max(\d+)/depth")]
        assert highs
        for high in highs:
            case = under(vectors, f"{name}/{size}/max{high}/")
            found = LinearDepth(LOW, high).apply({"params": params}, given)
            close(found, case["head_depth"][:, 0], 3e-6)
            shape = case["depth"].shape[2:]
            close(to_image_size(found, LOW, high, shape), case["depth"][:, 0], 3e-6)
    for norm in ("softmax", "sigmoid"):
        for size in places(vectors, rf"{name}/(.+)/{norm}/head_depth"):
            module = LinearDepth(LOW, FLIP_HIGH[name], norm=norm)
            found = module.apply({"params": params}, levels(vectors, size, layers))
            close(found, vectors[f"{name}/{size}/{norm}/head_depth"][:, 0], 3e-6)


def dpt(params):
    widths = tuple(params[f"projects_{i}"]["bias"].size for i in range(4))
    return DPT(LOW, params["project"]["bias"].size, widths)


def test_dpt(vectors):
    _, params, _ = head(vectors, "depth_dpt")
    for size in sizes(vectors):
        case = under(vectors, f"depth_dpt/{size}/")
        found = jax.jit(dpt(params).apply)({"params": params}, levels(vectors, size, 4))
        close(found, case["head_depth"][:, 0], 2e-5)
        shape = case["depth"].shape[2:]
        close(to_image_size(found, LOW, DPT_HIGH, shape), case["depth"][:, 0], 2e-5)


def test_dpt_inside(vectors):
    _, params, _ = head(vectors, "depth_dpt")
    (size,) = places(vectors, r"depth_dpt/(.+)/project")
    case = under(vectors, f"depth_dpt/{size}/")
    given = [Level(x.patches[:1], x.cls[:1]) for x in levels(vectors, size, 4)]
    _, state = dpt(params).apply(
        {"params": params}, given, capture_intermediates=True, mutable=["intermediates"]
    )
    inside = state["intermediates"]
    for i in range(4):
        close(inside[f"convs_{i}"]["__call__"][0], channels_last(case[f"conv{i}"]), 2e-5)
        close(inside[f"fusion_blocks_{i}"]["__call__"][0], channels_last(case[f"fusion{i}"]), 2e-5)
    project = jax.nn.relu(inside["project"]["__call__"][0])
    close(project, channels_last(case["project"]), 2e-5)
    maps = dpt(params).apply({"params": params}, given, method="reassemble")
    for i, found in enumerate(maps):
        close(found, channels_last(case[f"reassemble{i}"]), 2e-5)


@pytest.mark.parametrize(
    "name", ["seg_linear", "seg_ms", "depth_linear1", "depth_linear4", "depth_dpt"]
)
def test_released_layout_and_back(vectors, name):
    tensors, params, statistics = head(vectors, name)
    kind = kind_of(set(tensors))
    back = to_released(params, kind, statistics)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)
        assert back[key].dtype == value.dtype and back[key].shape == value.shape


def test_flip_average(vectors):
    model, params = backbone(vectors)
    for name, high in FLIP_HIGH.items():
        _, weights, _ = head(vectors, name)
        module = dpt(weights) if name == "depth_dpt" else LinearDepth(LOW, high)
        count = 1 if name == "depth_linear1" else 4
        blocks = tuple(range(model.depth - count, model.depth))

        def depth(x, module=module, weights=weights, blocks=blocks, high=high):
            given = feature_levels(model, params, x, blocks, False)
            return to_image_size(module.apply({"params": weights}, given), LOW, high, x.shape[1:3])

        (size,) = places(vectors, rf"{name}/(.+)/flip_average")
        image = jnp.asarray(channels_last(vectors[f"{size}/image"])[:1])
        mean = (depth(image) + depth(image[:, :, ::-1])[:, :, ::-1]) / 2
        bound = 2e-5 if name == "depth_dpt" else 3e-6
        close(mean, vectors[f"{name}/{size}/flip_average"][:, 0], bound)
