"""Training crops of segmentation against mmsegmentation's own steps, and their laws."""

import numpy as np
import pytest

from dinov2_jax.data import dense_crops
from dinov2_jax.data.dense_crops import SegmentationCrops
from tests.models.dense_vectors import places, read, under


@pytest.fixture(scope="module")
def vectors(golden):
    return under(read(golden), "seg_aug/")


def rgb(bgr):
    return np.ascontiguousarray(bgr[..., ::-1])


def near(found, expected, mean=0.3, most=9):
    """8-bit HSV: the agreement that the vectors state."""
    gap = np.abs(found.astype(int) - expected.astype(int))
    assert gap.mean() <= mean and gap.max() <= most


def test_single_colour_steps(vectors):
    image = rgb(vectors["image_bgr"])
    kinds = {"brightness": "shift", "contrast": "factor"}
    for kind, argument in kinds.items():
        for number in places(vectors, rf"{kind}_(.+)"):
            found = dense_crops.linear(image, **{argument: float(number)})
            np.testing.assert_array_equal(found, rgb(vectors[f"{kind}_{number}"]))
    for number in places(vectors, r"saturation_(.+)"):
        near(dense_crops.saturate(image, float(number)), rgb(vectors[f"saturation_{number}"]))
    for number in places(vectors, r"hue_(.+)"):
        near(dense_crops.turn_hue(image, int(number)), rgb(vectors[f"hue_{number}"]))


def test_chains(vectors):
    """In the two orders that the coin of the contrast gives."""
    for name in ("all_contrast_last", "all_contrast_first"):
        image = dense_crops.linear(rgb(vectors["image_bgr"]), shift=9.5)
        if name.endswith("first"):
            image = dense_crops.linear(image, 0.83)
        image = dense_crops.turn_hue(dense_crops.saturate(image, 1.21), -6)
        if name.endswith("last"):
            image = dense_crops.linear(image, 0.83)
        near(image, rgb(vectors[name]))


def test_sizes(vectors):
    for row in vectors["rescale_table"]:
        w, h, long_px, short_px, ratio, _, _, new_w, new_h = row
        limits = int(long_px * ratio), int(short_px * ratio)
        assert dense_crops.rescaled(int(h), int(w), *limits) == (new_h, new_w)


def test_resizing(vectors):
    image = rgb(vectors["image_bgr"])
    for case in places(vectors, r"resize_(.+)/label"):
        given = under(vectors, f"resize_{case}/")
        size = given["resized_label"].shape
        found = dense_crops.resize_labels(given["label"], size)
        np.testing.assert_array_equal(found, given["resized_label"])
        near(dense_crops.resize_image(image, size), rgb(given["resized_image"]), most=1)


def test_boxes(vectors):
    label, kept = vectors["crop/label"], int(vectors["crop/kept"])
    for i, (y1, y2, x1, x2) in enumerate(vectors["crop/boxes_y1y2x1x2"][: kept + 1]):
        assert dense_crops.is_varied(label[y1:y2, x1:x2], 0.75) == (i == kept)


def test_a_crop_is_whole_and_small_pictures_are_filled():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    target = rng.integers(0, 5, (40, 60)).astype(np.uint8)
    for crop_px, short_px in ((32, 40), (64, 32)):
        crops = SegmentationCrops(crop_px, short_px, fill=(1, 2, 3))
        for seed in range(8):
            found, classes = crops(np.random.default_rng(seed), image, target)
            assert found.shape == (crop_px, crop_px, 3) and classes.shape == (crop_px, crop_px)
            assert found.dtype == classes.dtype == np.uint8
            empty = (classes == 255).all(axis=1)
            assert (found[empty] == (1, 2, 3)).all()
    assert empty.any()


def test_the_laws_of_the_draws():
    """Half are mirrored; ratios are uniform; each colour step comes half the time."""
    image = np.zeros((50, 50, 3), np.uint8)
    image[:, 25:] = 200
    target = np.repeat(np.arange(50, dtype=np.uint8)[None], 50, axis=0)
    crops = SegmentationCrops(50, 50, ratios=(1.0, 1.0))
    mirrored = changed = 0
    for seed in range(400):
        found, classes = crops(np.random.default_rng(seed), image, target)
        mirrored += classes[0, 0] > classes[0, -1]
        changed += not np.isin(found, (0, 200)).all()
    assert 160 < mirrored < 240
    # Gray pictures show brightness and contrast alone, each with probability 1/2.
    assert 260 < changed < 340
    sides = []
    for seed in range(300):
        crops = SegmentationCrops(200, 100, ratios=(0.5, 2.0))
        _, classes = crops(np.random.default_rng(seed), image, target)
        sides.append((classes != 255).any(axis=0).sum())
    assert 50 <= min(sides) < 60 and 190 < max(sides) <= 200
    assert abs(np.mean(sides) - 125) < 8


def test_one_class_is_drawn_again_and_at_most_ten_times(monkeypatch):
    asked = []
    monkeypatch.setattr(dense_crops, "is_varied", lambda labels, most: asked.append(most) or False)
    dense_crops.varied_box(np.random.default_rng(0), np.zeros((30, 30), np.uint8), 10, 0.75)
    assert asked == [0.75] * 10
