"""Sliding windows and multi-scale tests against the reference's vectors."""

import re

import jax
import numpy as np
import pytest

from dinov2_jax.heads.dense_forward import Form, Trained, head_output
from dinov2_jax.heads.windows import View, boxes, logits_at, probabilities, segment, slide
from dinov2_jax.models.maps import feature_levels
from dinov2_jax.weights.dense import from_released
from tests.models.dense_vectors import backbone, channels_last, close, places, read, under


@pytest.fixture(scope="module")
def vectors(golden):
    return read(golden)


def forward(vectors, name, count):
    """Windows -> logits of patches."""
    model, params = backbone(vectors)
    trained = Trained(*from_released(under(vectors, f"{name}/params/"), "segmentation"))
    blocks = tuple(range(model.depth - count, model.depth))
    return jax.jit(
        lambda x: head_output(
            Form("segmentation"), trained, feature_levels(model, params, x, blocks, True)
        )
    )


@pytest.fixture(scope="module")
def linear(vectors):
    return forward(vectors, "seg_linear", 1)


@pytest.fixture(scope="module")
def multi(vectors):
    return forward(vectors, "seg_ms", 4)


def test_windows_and_their_mean(vectors, linear):
    cases = places(vectors, r"slide/(.+)/image")
    assert cases
    for case in cases:
        crop, stride = map(int, re.search(r"crop(\d+)_stride(\d+)", case).groups())
        given = under(vectors, f"slide/{case}/")
        image = channels_last(given["image"])[0]
        assert boxes(image.shape[:2], crop, stride) == [tuple(row) for row in given["windows"]]
        canvas = slide(linear, image, crop, stride)
        assert canvas.size == image.shape[:2]
        expected = channels_last(given["logits"])[0]
        close(canvas.values[: canvas.size[0], : canvas.size[1]], expected, 6e-6)
        close(logits_at(canvas, canvas.size), expected, 6e-6)
        if "logits_ori" in given:
            expected = channels_last(given["logits_ori"])[0]
            found = logits_at(canvas, tuple(given["ori_shape"].tolist()))
            close(found, expected, 6e-6)
        if "probs_ori" in given:
            close(jax.nn.softmax(found), channels_last(given["probs_ori"])[0], 6e-6)


def test_scales_and_mirrors(vectors, multi):
    numbers = places(vectors, r"tta/aug(\d+)/input")
    size = vectors["tta/image_bgr"].shape[:2]
    crop, stride = 48, 24  # see the vectors' README
    views = []
    for number in numbers:
        aug = under(vectors, f"tta/aug{number}/")
        views.append(View(channels_last(aug["input"])[0], bool(aug["flip"])))
        if "probs" in aug:
            found = probabilities(multi, views[-1:], size, crop, stride)
            close(joined(found, size), channels_last(aug["probs"])[0], 6e-6)
    mean = joined(probabilities(multi, views, size, crop, stride), size) / len(views)
    close(mean, channels_last(vectors["tta/mean_probs"])[0], 6e-6)
    classes = segment(multi, iter(views), size, crop, stride)
    np.testing.assert_array_equal(classes, vectors["tta/prediction"])
    assert classes.dtype == np.uint8


def joined(strips, size):
    return np.concatenate(strips)[: size[0], : size[1]]


def test_devices_share_the_windows(vectors, linear):
    """Calls of a multiple of windows give what calls of powers of two give."""
    case = places(vectors, r"slide/(.+)/image")[0]
    crop, stride = map(int, re.search(r"crop(\d+)_stride(\d+)", case).groups())
    image = channels_last(vectors[f"slide/{case}/image"])[0]
    counts = []

    def counted(windows):
        counts.append(len(windows))
        return linear(windows)

    alone = slide(counted, image, crop, stride)
    total = len(vectors[f"slide/{case}/windows"])
    assert sum(counts) == total and all(n & (n - 1) == 0 for n in counts)
    counts.clear()
    shared = slide(counted, image, crop, stride, multiple=8)
    assert all(n % 8 == 0 for n in counts) and sum(counts) == -(-total // 8) * 8
    np.testing.assert_allclose(shared.values, alone.values, atol=1e-5)


def test_no_crop_is_one_window():
    assert boxes((30, 50), 0, 0) == [(0, 30, 0, 50)]
    assert boxes((512, 683), 512, 341) == [(0, 512, 0, 512), (0, 512, 171, 683)]
    assert len(boxes((1920, 2560), 640, 320)) == 5 * 7
