"""Training crops for depth: fixed places, drawn laws, and what stays together."""

import pickle

import numpy as np
import pytest

from dinov2_jax.data.depth_crops import (
    DepthCrops,
    change_colour,
    fixed_box,
    kitti_box,
    padded,
    rotate,
)


def bounds(box):
    return [(part.start, part.stop) for part in box]


@pytest.mark.parametrize(
    ("size", "start"), [((375, 1242), (23, 13)), ((370, 1226), (18, 5)), ((376, 1241), (24, 12))]
)
def test_kitti_box(size, start):
    top, left = start
    assert bounds(kitti_box(*size)) == [(top, top + 352), (left, left + 1216)]
    assert fixed_box("kitti", *size) == kitti_box(*size)


def test_fixed_box():
    assert bounds(fixed_box("nyu", 480, 640)) == [(45, 472), (43, 608)]
    assert bounds(fixed_box("", 30, 40)) == [(0, 30), (0, 40)]
    assert bounds(fixed_box("kitti", 30, 40)) == [(0, 30), (0, 40)]


def test_rotation_against_its_formula():
    """Every pixel comes from the place that a turn about the centre gives."""
    rng = np.random.default_rng(0)
    image, depth = ramp(41, 57), rng.uniform(1, 9, (41, 57)).astype(np.float32)
    degrees = 2.5
    turned, turned_depth = rotate(image, depth, degrees)
    angle = np.deg2rad(degrees)
    rows, cols = np.mgrid[:41, :57]
    dy, dx = rows - 20, cols - 28
    x = np.cos(angle) * dx + np.sin(angle) * dy + 28
    y = -np.sin(angle) * dx + np.cos(angle) * dy + 20
    inside = (x >= 0) & (x <= 56) & (y >= 0) & (y <= 40)
    assert 0.9 < inside.mean() < 1
    # A ramp is linear, so bilinear resampling gives the formula itself, up to rounding and OpenCV's
    # 1/32 px.
    expected = np.stack([4 * x, 5 * y, x + y], axis=-1)
    assert np.abs(turned - expected)[inside].max() < 0.75
    clear = inside & (np.abs(x % 1 - 0.5) > 0.05) & (np.abs(y % 1 - 0.5) > 0.05)
    nearest = depth[np.rint(y).astype(int).clip(0, 40), np.rint(x).astype(int).clip(0, 56)]
    np.testing.assert_array_equal(turned_depth[clear], nearest[clear])
    outside = (x < -1) | (x > 57) | (y < -1) | (y > 41)
    assert (turned_depth[outside] == 0).all() and (turned[outside] == 0).all()


def ramp(height, width):
    rows, cols = np.mgrid[:height, :width]
    return np.stack([4 * cols, 5 * rows, cols + rows], axis=-1).astype(np.uint8)


def test_colour_against_floats():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    factors = np.array([0.9, 1.0, 1.1])
    found = change_colour(image, 1.07, 1.2, factors)
    expected = np.clip(image.astype(float) ** 1.07 * 1.2 * factors, 0, 255)
    assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 0.5
    np.testing.assert_array_equal(change_colour(image, 1, 1, np.ones(3)), image)


def test_padding():
    image, depth = np.full((4, 5, 3), 9, np.uint8), np.ones((4, 5), np.float32)
    large, target = padded(image, depth, (6, 5))
    assert large.shape == (6, 5, 3) and target.shape == (6, 5)
    assert (target[4:] == 0).all() and (large[4:] == (124, 116, 104)).all()
    assert padded(image, depth, (3, 3))[0] is image


def test_picture_and_depth_stay_together():
    """Without rotation and colours, the depth is a function of the colour at every pixel."""
    image = ramp(48, 50)
    depth = (image[..., 0] * 256.0 + image[..., 1] + 1).astype(np.float32)
    crops = DepthCrops(20, 30, degrees=0, brightness=(1, 1), gamma=(1, 1), colour=(1, 1))
    crops = pickle.loads(pickle.dumps(crops))
    places, mirrored = set(), set()
    for seed in range(40):
        small, target = crops(np.random.default_rng(seed), image, depth)
        assert small.shape == (20, 30, 3) and target.shape == (20, 30)
        same = small[..., 0] * 256.0 + small[..., 1] + 1
        np.testing.assert_array_equal(same, target)
        places.add((int(small[0, :, 0].min()), int(small[0, 0, 1])))
        mirrored.add(bool(small[0, 0, 0] > small[0, -1, 0]))
    assert mirrored == {True, False} and len(places) > 30


def test_a_frame_comes_first():
    image = np.zeros((480, 640, 3), np.uint8)
    image[45:472, 43:608] = 255
    depth = (image[..., 0] / 255).astype(np.float32)
    crops = DepthCrops(427, 565, frame="nyu", degrees=0, brightness=(1, 1))
    small, target = crops(np.random.default_rng(1), image, depth)
    assert (small > 0).all() and (target == 1).all()


def test_shares_of_what_is_drawn():
    """Half of the crops are turned and half get other colours; both laws have their bounds."""
    image, depth = np.full((24, 24, 3), 100, np.uint8), np.ones((24, 24), np.float32)
    crops = DepthCrops(24, 24, degrees=20, brightness=(0.5, 0.6))
    drawn = [crops(np.random.default_rng(seed), image, depth) for seed in range(200)]
    turned = np.mean([(target == 0).any() for _, target in drawn])
    coloured = np.mean([small[12, 12, 0] != 100 for small, _ in drawn])
    assert 0.35 < turned < 0.6  # angles of half a degree move no whole pixel over the rim
    assert 0.4 < coloured < 0.6
    values = np.array([small[12, 12] for small, _ in drawn if small[12, 12, 0] != 100])
    assert values.max() <= 100**1.1 * 0.6 * 1.1 and values.min() >= 100**0.9 * 0.5 * 0.9 - 1
