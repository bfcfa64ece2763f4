"""Segmentation and depth metrics against the reference's vectors."""

import numpy as np
import pytest

from dinov2_jax.data.depth_crops import kitti_box
from dinov2_jax.metrics import depth, segmentation


@pytest.fixture(scope="module")
def vectors(golden):
    return dict(np.load(golden / "dense_heads.npz"))


@pytest.mark.parametrize("zero", ["off", "on"])
def test_segmentation(vectors, zero):
    prefix = f"seg_metrics/reduce_zero_{zero}/"
    case = {k.removeprefix(prefix): v for k, v in vectors.items() if k.startswith(prefix)}
    true = segmentation.reduce_zero(case["gt"]) if zero == "on" else case["gt"]
    classes = len(case["IoU"])
    parts = [
        segmentation.count_areas(p, t, classes) for p, t in zip(case["pred"], true, strict=True)
    ]
    areas = segmentation.add_areas(parts)
    scale = 100  # theirs are shares
    close = {"rtol": 1e-12, "atol": 0}
    np.testing.assert_allclose(segmentation.class_iou(areas), scale * case["IoU"], **close)
    np.testing.assert_allclose(segmentation.class_accuracy(areas), scale * case["Acc"], **close)
    for name, value in segmentation.summary(areas).items():
        theirs = {"miou": "mIoU", "aacc": "aAcc", "macc": "mAcc"}[name]
        np.testing.assert_allclose(value, scale * case[theirs], **close)


def same(found, expected):
    np.testing.assert_allclose(list(found.values()), expected, rtol=3e-7, atol=0)


def test_nyu(vectors):
    assert tuple(vectors["depth_metrics/names"]) == depth.NAMES
    found = []
    for key in sorted(k for k in vectors if k.endswith("/gt_mm")):
        case, true = key.removesuffix("gt_mm"), vectors[key].astype(np.float32) / 1000
        for name, crop in (("none", "none"), ("eigen", "nyu_eigen")):
            valid = depth.valid_pixels(true, 0.001, 10, crop)
            assert valid.sum() == vectors[f"{case}{name}_pixels"]
            metrics = depth.depth_metrics(vectors[f"{case}pred"], true, valid)
            same(metrics, vectors[case + name])
        found.append(metrics)
    same(depth.mean_metrics(found), vectors["depth_metrics/nyu_mean"])


def test_kitti(vectors):
    for key in [k for k in vectors if k.endswith("/gt_u16")]:
        case, whole = key.removesuffix("gt_u16"), vectors[key]
        true = whole[kitti_box(*whole.shape)].astype(np.float32) / 256
        for name, crop in (("none", "none"), ("eigen", "kitti_eigen"), ("garg", "garg")):
            valid = depth.valid_pixels(true, 0.001, 80, crop)
            assert valid.sum() == vectors[f"{case}{name}_pixels"]
            same(depth.depth_metrics(vectors[f"{case}pred"], true, valid), vectors[case + name])
