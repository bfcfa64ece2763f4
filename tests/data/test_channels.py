"""Pictures of one channel and of many: decoded, cropped, coloured, shown."""

from io import BytesIO

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data import photometric
from dinov2_jax.data.crops import Box, center_crop, resize_crop, sample_crops
from dinov2_jax.data.decode import BadImage, DecodeSpec, decode
from dinov2_jax.viz.sheet import as_rgb, crop_sheet

NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 5), dtype=np.uint8)


def npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_colour_becomes_luma_and_gray_stays_as_it_is():
    rgb, gray = NOISE[..., :3], NOISE[..., 0]
    luma = np.asarray(Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(decode(png(rgb), DecodeSpec(channels=1)), luma[..., None])
    np.testing.assert_array_equal(decode(png(gray), DecodeSpec(channels=1)), gray[..., None])
    np.testing.assert_array_equal(
        decode(npy(gray), DecodeSpec(channels=3)), np.stack([gray] * 3, axis=-1)
    )


def test_arrays_are_read_as_they_are():
    np.testing.assert_array_equal(decode(npy(NOISE), DecodeSpec(channels=5)), NOISE)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (npy(NOISE.astype(np.float32)), "an array float32 .* save uint8"),
        (npy(np.asfortranarray(NOISE)), "save uint8 .* in C order"),
        (npy(NOISE[0, 0]), "is no picture"),
        (npy(np.array([{}])), "is no picture"),
        (npy(NOISE)[:-7], "."),
        (npy(NOISE[..., :4]), "it has 4 channels and config.model.in_channels is 5"),
        (png(NOISE[..., :3]), "it has 3 channels .* is 5: .* need .npy files"),
        (npy(NOISE).replace(b"(40, 56, 5)", b"(90000, 90000, 5)")[:500], "more than max_pixels"),
    ],
)
def test_what_is_no_picture_of_five_channels_is_a_bad_record(raw, reason):
    with pytest.raises(BadImage, match=reason):
        decode(raw, DecodeSpec(channels=5))


@pytest.mark.parametrize("channels", [1, 2, 5, 200])
def test_every_channel_is_cropped_as_of_a_picture_in_colour(channels):
    image = np.tile(NOISE, 40)[..., :channels]
    for side in (40, 200):
        large = np.kron(image, np.ones((side // 40, side // 40, 1), np.uint8))
        found = sample_crops(np.random.default_rng(1), large, 3, 16, (0.3, 1.0))
        for i in range(channels):
            alike = np.repeat(large[..., i : i + 1], 3, axis=2)
            wanted = sample_crops(np.random.default_rng(1), alike, 3, 16, (0.3, 1.0))
            np.testing.assert_array_equal(found[..., i], wanted[..., 0])
    shown = center_crop(image, 24, 32)
    wanted = center_crop(np.repeat(image[..., :1], 3, axis=2), 24, 32)
    np.testing.assert_array_equal(shown[..., 0], wanted[..., 0])
    assert shown.shape == (32, 32, channels)


def test_a_very_large_crop_of_one_channel():
    image = np.full((2100, 2100, 1), 7, np.uint8)
    np.testing.assert_array_equal(resize_crop(image, Box(0, 0, 2100, 2100), 8), 7)


def augmented(crops: np.ndarray, **changes) -> np.ndarray:
    channels = crops.shape[-1]
    spec = photometric.ColourSpec(
        mean=(0.0,) * channels, std=(1.0,) * channels, jitter_probability=1.0, **changes
    )
    draws = jax.random.uniform(jax.random.key(0), (*crops.shape[:2], photometric.DRAWS))
    return np.asarray(photometric.augment_crops(draws, jnp.asarray(crops), spec, 0.5, 0.5))


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_is_coloured_as_a_gray_picture_in_rgb_is(channels):
    """Saturation, hue and grayscale change no gray picture; the rest is the same for both."""
    gray = np.random.default_rng(2).integers(0, 256, (6, 2, 20, 20, 1), dtype=np.uint8)
    found = augmented(np.repeat(gray, channels, axis=-1))
    wanted = augmented(np.repeat(gray, 3, axis=-1))
    for i in range(channels):
        np.testing.assert_allclose(found[..., i], wanted[..., 0], atol=1e-4)
    assert np.abs(found - np.asarray(gray) / 255).max() > 0.05


def test_what_a_report_shows():
    for channels in (1, 2, 5):
        shown = as_rgb(np.broadcast_to(NOISE[..., :channels], (2, 2, 40, 56, channels)))
        assert shown.shape == (2, 2, 40, 56, 3)
        np.testing.assert_array_equal(shown[0, 0, ..., 0], NOISE[..., 0])
    assert crop_sheet(shown[..., :40, :], shown[..., :16, :16, :]).startswith(b"\x89PNG")
