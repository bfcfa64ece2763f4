"""Patch embeddings of other numbers of channels, and position tables of other sizes."""

import jax
import numpy as np
import pytest

from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.adapt import with_channels, with_image_size

MODEL = VisionTransformer(dim=16, depth=1, heads=2, patch_size=4, image_size=16, layerscale=None)


def params_of(channels: int) -> dict:
    images = np.zeros((1, 16, 16, channels), np.float32)
    return jax.tree.map(np.asarray, dict(MODEL.init(jax.random.key(channels), images)["params"]))


def features(params: dict, images: np.ndarray) -> np.ndarray:
    return np.asarray(MODEL.apply({"params": params}, images)["prenorm"])


@pytest.mark.parametrize("old", [1, 3])
@pytest.mark.parametrize("new", [1, 2, 3, 4, 10])
def test_a_gray_picture_looks_the_same_to_any_number_of_channels(old, new):
    params = params_of(old)
    gray = np.random.default_rng(0).standard_normal((2, 16, 16, 1)).astype(np.float32)
    wanted = features(params, np.repeat(gray, old, axis=-1))
    changed = with_channels(params, 4, new)
    assert changed["patch_embed"]["kernel"].shape == (4 * 4 * new, 16)
    got = features(changed, np.repeat(gray, new, axis=-1))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_same_number_of_channels_is_the_same_array():
    params = params_of(3)
    assert with_channels(params, 4, 3)["patch_embed"] is params["patch_embed"]


def test_every_channel_has_the_mean_kernel_times_three_over_n():
    params = params_of(3)
    rgb = params["patch_embed"]["kernel"].reshape(16, 3, 16)
    six = with_channels(params, 4, 6)["patch_embed"]["kernel"].reshape(16, 6, 16)
    for channel in range(6):
        np.testing.assert_allclose(six[:, channel], rgb.mean(axis=1) * 3 / 6, atol=1e-7)


def test_a_table_of_the_same_size_stays_to_the_bit():
    params = params_of(3)
    same = with_image_size(params, MODEL, 16)
    np.testing.assert_array_equal(same["pos_embed"], params["pos_embed"])
    assert with_image_size(params, MODEL, 32)["pos_embed"].shape == (1, 1 + 8 * 8, 16)
