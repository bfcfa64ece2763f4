"""ViT-Adapter and Mask2Former against the reference's vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dinov2_jax.heads.mask2former import (
    Draws,
    Truth,
    at_points,
    costs,
    draw_points,
    match,
    total_loss,
    truth_of,
)
from dinov2_jax.models.mask2former import Prediction, semantic_scores
from dinov2_jax.models.pixel_decoder import PixelDecoder, sine_positions
from dinov2_jax.weights.mask2former import from_released

BOUND = 3e-6  # three times the agreement of the vectors


@pytest.fixture(scope="module")
def vectors(golden):
    return dict(np.load(golden / "m2f.npz"))


def under(vectors, prefix):
    return {k.removeprefix(prefix): v for k, v in vectors.items() if k.startswith(prefix)}


def channels_last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def close(found, expected, bound=BOUND):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.fixture(scope="module")
def weights(vectors):
    return from_released(under(vectors, "params/"), vit_heads=3)


@pytest.fixture(scope="module")
def adapted(vectors, weights):
    """Maps, and what every module inside gave."""
    w = weights

    @jax.jit
    def run(image):
        return w.adapter.apply(
            {"params": w.adapter_params}, image, w.vit, w.statistics,
            capture_intermediates=True, mutable=["intermediates"],
        )  # fmt: skip

    (maps, _), state = run(channels_last(vectors["image"]))
    return maps, state["intermediates"]


@pytest.fixture(scope="module")
def predictions(weights, adapted):
    return jax.jit(weights.head.apply)({"params": weights.head_params}, adapted[0])


def test_spatial_prior(vectors, adapted):
    maps, _ = adapted[1]["spm"]["__call__"][0]
    for i in (1, 2, 4):
        expected = vectors[f"spm/c{i}"]
        found = np.asarray(maps[i - 1])
        close(found if i > 1 else np.moveaxis(found, -1, 1), expected.reshape(
            (len(found), *found.shape[1:]) if i > 1 else expected.shape))  # fmt: skip


def test_interactions(vectors, adapted):
    seen = sorted(k for k in vectors if k.startswith("interaction"))
    assert seen
    for name in seen:
        where, what = name.split("/")
        tokens, _, cells = adapted[1][where.replace("interaction", "interactions_")]["__call__"][0]
        close(tokens if what == "x" else cells, vectors[name])


def test_adapter(vectors, adapted):
    for i, found in enumerate(adapted[0]):
        close(found, channels_last(vectors[f"adapter/f{i + 1}"]))


def test_pixel_decoder(vectors, weights, adapted):
    head = weights.head
    shape = head.pixel_layers, head.pixel_heads, head.pixel_hidden, head.groups
    module = PixelDecoder(head.width, *shape)
    params = weights.head_params["pixel_decoder"]
    memories, pixels = module.apply({"params": params}, adapted[0])
    close(pixels, channels_last(vectors["pixel_decoder/mask_feature"]))
    for i, memory in enumerate(memories):
        close(memory, channels_last(vectors[f"pixel_decoder/memory{i}"]))


def test_sine_positions(vectors):
    for name in (k for k in vectors if k.startswith("sine_position")):
        expected = channels_last(vectors[name])[0]
        close(sine_positions(expected.shape[:2], expected.shape[-1]), expected)


def test_decoder(vectors, predictions):
    decoder = under(vectors, "decoder/")
    assert len(predictions) == sum(name.startswith("cls") for name in decoder)
    for name, expected in decoder.items():
        found = predictions[int(name.removeprefix("cls").removeprefix("mask"))]
        close(found.classes if name.startswith("cls") else found.masks, expected)
    close(semantic_scores(predictions[-1]), channels_last(vectors["semantic_scores"]))


def truth(vectors):
    labels = vectors["gt_labels"].astype(np.int32)[None]
    masks = vectors["gt_masks"].astype(np.float32)[None]
    return Truth(*map(jnp.asarray, (labels, masks, np.ones(labels.shape, bool))))


def test_costs(vectors, predictions):
    last = len(predictions) - 1
    points = jnp.asarray(vectors[f"random/layer{last}/match_points"][0])
    known = truth(vectors)
    sampled = [
        at_points(x, jnp.broadcast_to(points, (len(x), *points.shape)))
        for x in (predictions[-1].masks[0], known.masks[0])
    ]
    found = costs(predictions[-1].classes[0], sampled[0], known.labels[0], sampled[1])
    for name, part in zip(("class", "mask", "dice"), found, strict=True):
        close(part, vectors[f"cost/{name}"])


def draws(vectors, queries, layer):
    """Points in the order of the true masks; the vectors have them in that of the queries."""
    given = under(vectors, f"random/layer{layer}/")
    rows = np.argsort(np.argsort(queries))
    parts = [given["match_points"], *(given[f"{x}_points"][rows][None] for x in
                                      ("candidate", "uniform"))]  # fmt: skip
    return Draws(*map(jnp.asarray, parts))


def matched(vectors, predictions):
    known = truth(vectors)
    return [
        np.asarray(match(p, known, jnp.asarray(vectors[f"random/layer{i}/match_points"])))[0]
        for i, p in enumerate(predictions)
    ]


def test_matching(vectors, predictions):
    for layer, queries in enumerate(matched(vectors, predictions)):
        assigned = vectors[f"assigned/layer{layer}"]
        expected = np.zeros_like(assigned)
        expected[queries] = np.arange(len(queries)) + 1
        np.testing.assert_array_equal(expected, assigned)


def test_losses_and_gradients(vectors, weights, adapted, predictions):
    points = [draws(vectors, q, i) for i, q in enumerate(matched(vectors, predictions))]

    @jax.jit
    def loss(params):
        return total_loss(
            weights.head.apply({"params": params}, adapted[0]), truth(vectors), points
        )

    (total, parts), gradient = jax.value_and_grad(loss, has_aux=True)(weights.head_params)
    close(total, vectors["loss/total"])
    for i, layer in enumerate(parts):
        prefix = f"d{i}." if i < len(parts) - 1 else ""
        for name, value in zip(("cls", "mask", "dice"), layer, strict=True):
            close(value, vectors[f"loss/{prefix}loss_{name}"])
    close(gradient["query_feat"], vectors["grad/decode_head.query_feat.weight"], 1e-5)
    close(
        gradient["mask_embed_4"]["kernel"].T, vectors["grad/decode_head.mask_embed.4.weight"], 1e-5
    )
    kernel = gradient["pixel_decoder"]["input_convs_0"]["conv"]["kernel"]
    expected = vectors["grad/decode_head.pixel_decoder.input_convs.0.conv.weight"]
    close(kernel.transpose(3, 2, 0, 1), expected, 1e-5)


def test_padded_masks_change_nothing(vectors, predictions):
    known = truth(vectors)
    padded = Truth(
        jnp.pad(known.labels, ((0, 0), (0, 2))),
        jnp.pad(known.masks, ((0, 0), (0, 2), (0, 0), (0, 0))),
        jnp.pad(known.known, ((0, 0), (0, 2))),
    )
    queries = matched(vectors, predictions)
    points = [draws(vectors, q, i) for i, q in enumerate(queries)]
    wide = [
        d._replace(
            candidates=jnp.pad(d.candidates, ((0, 0), (0, 2), (0, 0), (0, 0))),
            uniform=jnp.pad(d.uniform, ((0, 0), (0, 2), (0, 0), (0, 0))),
        )
        for d in points
    ]
    found, _ = total_loss(predictions, padded, wide)
    expected, _ = total_loss(predictions, known, points)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_matching_is_that_of_scipy():
    rng = np.random.default_rng(0)
    classes, masks = rng.normal(size=(2, 9, 5)), rng.normal(size=(2, 9, 6, 7))
    prediction = Prediction(jnp.float32(classes), jnp.float32(masks))
    labels = rng.integers(0, 4, (2, 4))
    known = Truth(
        jnp.asarray(labels), jnp.float32(rng.integers(0, 2, (2, 4, 12, 14))), jnp.ones((2, 4), bool)
    )
    points = draw_points(jax.random.key(1), 2, 4, points=32).match
    found = match(prediction, known, points)
    for i in range(2):
        sampled = [
            at_points(x, jnp.broadcast_to(points[i], (len(x), *points[i].shape)))
            for x in (prediction.masks[i], known.masks[i])
        ]
        total = sum(costs(prediction.classes[i], sampled[0], known.labels[i], sampled[1]))
        rows, cols = linear_sum_assignment(np.asarray(total))
        np.testing.assert_array_equal(np.asarray(found[i])[cols], rows)


def test_too_few_queries():
    prediction = Prediction(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2, 4, 4)))
    known = truth_of(np.arange(3, dtype=np.uint8).repeat(4).reshape(1, 3, 4), 3, 3)
    with pytest.raises(ValueError, match="2 queries cannot find 3 masks"):
        match(prediction, known, jnp.zeros((1, 5, 2)))


def test_truth_of_labels():
    labels = np.array([[[0, 0, 2], [255, 2, 2]]], np.uint8)
    found = truth_of(labels, 3, 4)
    np.testing.assert_array_equal(found.labels[0, :2], [0, 2])
    np.testing.assert_array_equal(found.known[0], [True, True, False, False])
    np.testing.assert_array_equal(found.masks[0, 1], labels[0] == 2)
    assert not truth_of(np.full((1, 2, 2), 255, np.uint8), 3, 2).known.any()
