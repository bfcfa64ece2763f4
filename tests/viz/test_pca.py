"""Patch features as colours, and the sheet of crops."""

import io

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.viz.pca import pca_rgb, principal_directions, project, scale_robust
from dinov2_jax.viz.sheet import crop_sheet


@pytest.fixture
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 8)) * np.array([9, 7, 5, 3, 1, 1, 1, 1]) + 4


def test_directions_agree_with_svd_up_to_sign(features: np.ndarray) -> None:
    expected = np.linalg.svd(features - features.mean(0))[2][:3]
    found = principal_directions(features)
    signs = np.sign((found * expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, signs * expected, atol=1e-10)


def test_largest_loading_is_positive(features: np.ndarray) -> None:
    for data in (features, -features):  # mirrored data has the same axes, either sign
        directions = principal_directions(data)
        largest = np.abs(directions).argmax(axis=1)
        assert (directions[np.arange(3), largest] > 0).all()


def test_order_is_by_variance(features: np.ndarray) -> None:
    spread = project(features, principal_directions(features)).std(axis=0)
    assert spread[0] > spread[1] > spread[2]


def test_scaling_withstands_an_outlier() -> None:
    column = np.append(np.linspace(0.0, 1.0, 999), 1e6)[:, None]
    scaled = scale_robust(column)
    np.testing.assert_allclose(scaled[500], 0.5, atol=0.02)
    assert scaled.min() == 0 and scaled.max() == 1


def test_joint_over_pictures() -> None:
    # Two pictures of one value each: apart they would be flat, together they are the extremes.
    patches = np.concatenate([np.full((1, 4, 5), -1.0), np.full((1, 4, 5), 1.0)])
    colours = pca_rgb(patches.astype(np.float32), (2, 2))
    assert sorted([int(colours[0, 0, 0, 0]), int(colours[1, 0, 0, 0])]) == [0, 255]
    assert (colours[..., 1:] == 128).all()  # no second component: neutral, not noise


def test_size_and_layout() -> None:
    patches = np.arange(2 * 15 * 4, dtype=np.float32).reshape(2, 15, 4)
    colours = pca_rgb(patches, (3, 5))
    assert colours.shape == (2, 66, 110, 3) and colours.dtype == np.uint8  # k = 22
    blocks = colours.reshape(2, 3, 22, 5, 22, 3)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    red = blocks[:, :, 0, :, 0, 0].reshape(2 * 15).astype(int)
    assert (np.diff(red) >= 0).all()  # row-major, rising with the features


def test_few_dimensions_constant_and_non_finite() -> None:
    assert (pca_rgb(np.ones((1, 4, 2), np.float32), (2, 2)) == 128).all()
    assert pca_rgb(np.full((1, 4, 6), np.nan, np.float32), (2, 2)).shape == (1, 64, 64, 3)


def test_wrong_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fill a grid of 2 x 3"):
        pca_rgb(np.zeros((1, 7, 4), np.float32), (2, 3))


@pytest.mark.parametrize(("views", "width"), [(0, 4 + 2 * 96), (3, 4 + 12 + 2 * 4 + 5 * 96)])
def test_sheet_holds_every_crop(views: int, width: int) -> None:
    rng = np.random.default_rng(1)
    global_crops = rng.integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    local_crops = rng.integers(0, 256, (2, views, 16, 16, 3), np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(crop_sheet(global_crops, local_crops))))
    assert sheet.shape == (3 * 4 + 2 * 96, width + 2 * 4, 3)
    np.testing.assert_array_equal(sheet[4:100:3, 4:100:3], global_crops[0, 0])
    if views:
        np.testing.assert_array_equal(sheet[104:200:6, -100:-4:6], local_crops[1, 2])


def test_sheet_needs_the_same_pictures() -> None:
    with pytest.raises(ValueError, match="got 2 with global and 1 with local"):
        crop_sheet(np.zeros((2, 2, 8, 8, 3), np.uint8), np.zeros((1, 3, 4, 4, 3), np.uint8))
