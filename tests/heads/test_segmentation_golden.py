"""The loss of segmentation heads and its gradients against mmsegmentation's."""

import jax
import numpy as np
import pytest

from dinov2_jax.heads.segmentation_recipes import RECIPES, cross_entropy, segmentation_loss
from dinov2_jax.models.maps import resize
from dinov2_jax.models.segmentation import SegmentationHead
from dinov2_jax.weights.dense import from_released, to_released
from tests.models.dense_vectors import close, levels, read, under


@pytest.fixture(scope="module")
def vectors(golden):
    return read(golden)


@pytest.mark.parametrize(("name", "count"), [("seg_linear", 1), ("seg_ms", 4)])
def test_loss_gradients_and_statistics(vectors, name, count):
    params, statistics = from_released(under(vectors, f"{name}/params/"), "segmentation")
    train = under(vectors, f"{name}/train/")
    targets = train["labels"][:, 0]
    given = levels(vectors, "x".join(map(str, targets.shape[1:])), count, "normed")
    loss = segmentation_loss(len(params["bias"]))

    def value(params):
        trained = {"params": params, "statistics": statistics}
        found, after = loss(trained, given, targets, 0)
        return found, after["statistics"]

    (found, after), gradient = jax.value_and_grad(value, has_aux=True)(params)
    close(found, train["loss_ce"], 3e-7)
    ours, theirs = to_released(gradient, "segmentation"), under(train, "grad/")
    # Of the largest gradient of the head: float64 differs from torch's bias by 9e-7 of its own.
    most = max(np.abs(expected).max() for expected in theirs.values())
    for key, expected in theirs.items():
        assert np.abs(ours[key] - expected).max() <= 9e-7 * most, key
    close(after.mean, train["after/decode_head.bn.running_mean"], 6e-7)
    module, maps = SegmentationHead(len(params["bias"])), [level.patches for level in given]
    logits, _ = module.apply({"params": params}, maps, statistics, train=True)
    known = targets != 255
    right = (np.asarray(resize(logits, targets.shape[1:])).argmax(-1) == targets)[known].mean()
    assert 100 * right == pytest.approx(float(train["acc_seg"][0]), abs=1e-4)


def test_ignored_pixels_count_in_the_mean():
    logits = np.zeros((1, 2, 2, 4), np.float32)
    targets = np.array([[[0, 255], [255, 255]]], np.uint8)
    assert cross_entropy(logits, targets) == pytest.approx(np.log(4) / 4)


def test_recipes_are_the_references():
    linear, ms = (RECIPES[name]["ade20k"] for name in ("segmentation", "segmentation_ms"))
    assert (linear.iterations, linear.batch_size, linear.crop, linear.stride) == (
        40000,
        16,
        512,
        341,
    )
    assert (ms.crop, ms.short_side, ms.stride, ms.blocks) == (640, 640, 320, 4)
    assert ms.flip and not linear.flip and ms.ratios == (1.0, 3.0)
    assert ms.scales == (1.0, 1.32, 1.73, 2.28, 3.0)
    assert RECIPES["segmentation"]["voc2012"].long_side == 2048
