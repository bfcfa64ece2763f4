"""Boxes against torchvision's law, pixels against Pillow."""

import math
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dinov2_jax.data import crops
from dinov2_jax.data.crops import Box, center_crop, resize_crop, sample_box, sample_crops

GLOBAL, LOCAL = (0.32, 1.0), (0.05, 0.32)


def distance_to_uniform(samples: np.ndarray) -> float:
    """Kolmogorov's sqrt(n) D; 1.95 is exceeded once in a thousand times."""
    ordered, n = np.sort(samples), len(samples)
    ranks = np.arange(n + 1) / n
    worst = max((ranks[1:] - ordered).max(), (ordered - ranks[:-1]).max())
    return worst * n**0.5


def distance_of_two(a: np.ndarray, b: np.ndarray) -> float:
    """The same for two samples."""
    grid = np.sort(np.concatenate([a, b]))
    cdf_a = np.searchsorted(np.sort(a), grid, side="right") / len(a)
    cdf_b = np.searchsorted(np.sort(b), grid, side="right") / len(b)
    return np.abs(cdf_a - cdf_b).max() * (len(a) * len(b) / (len(a) + len(b))) ** 0.5


def boxes(height: int, width: int, scale: tuple[float, float], number: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([sample_box(rng, height, width, scale) for _ in range(number)])


def torchvision_box(
    rng: random.Random, height: int, width: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params as documented, with Python's own generator."""
    for _ in range(10):
        target = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w = round(math.sqrt(target * ratio))
        h = round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * 4 / 3), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def test_small_boxes_follow_the_analytic_law() -> None:
    """In a square, every local box fits at once: area, aspect and place are uniform."""
    top, left, height, width = boxes(4000, 4000, LOCAL, 4000).T
    area = height * width / 4000**2
    assert distance_to_uniform((area - 0.05) / 0.27) < 1.95
    log_aspect = np.log(width / height) / math.log(4 / 3)
    assert distance_to_uniform((log_aspect + 1) / 2) < 1.95
    assert distance_to_uniform((top + 0.5) / (4001 - height)) < 1.95
    assert distance_to_uniform((left + 0.5) / (4001 - width)) < 1.95


@pytest.mark.parametrize("scale", [GLOBAL, LOCAL])
@pytest.mark.parametrize("shape", [(375, 500), (500, 300), (72, 72)])
def test_boxes_follow_torchvision(shape: tuple[int, int], scale: tuple[float, float]) -> None:
    ours = boxes(*shape, scale, 4000)
    rng = random.Random(0)
    theirs = np.array([torchvision_box(rng, *shape, scale) for _ in range(4000)])
    for column in range(4):
        assert distance_of_two(ours[:, column], theirs[:, column]) < 1.95
    areas = [found[:, 2] * found[:, 3] for found in (ours, theirs)]
    assert distance_of_two(*areas) < 1.95


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((20, 400), (0, 186, 20, 27)),
        ((400, 20), (186, 0, 27, 20)),
        ((1, 20000), (0, 9999, 1, 1)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_a_picture_where_nothing_fits_gives_its_centre(shape: tuple[int, int], box: tuple) -> None:
    rng = np.random.default_rng(0)
    assert sample_box(rng, *shape, (0.9, 1.0)) == box


def natural(height: int, width: int) -> np.ndarray:
    """A picture with the spectrum of photographs, amplitude 1/f, deviation 50 of 255."""
    rng = np.random.default_rng(0)
    noise = np.fft.rfft2(rng.standard_normal((3, height, width)))
    fy, fx = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width
    image = np.fft.irfft2(noise / np.maximum(np.hypot(fy, fx), 1), (height, width))
    image = (image - image.mean()) / image.std() * 50 + 128
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def drawing(side: int) -> np.ndarray:
    """Hard edges, as in an emoji: the kernel overshoots and must saturate."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, side - 6, side - 6), fill=(252, 234, 43), outline="black", width=3)
    draw.rectangle((side // 3, side // 3, side // 2, side // 2), fill="red")
    return np.asarray(image)


def pillow_crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    region = (box.left, box.top, box.left + box.width, box.top + box.height)
    crop = Image.fromarray(image).crop(region)
    return np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC)).astype(int)


@pytest.mark.parametrize(
    ("image", "size", "scale"),
    [
        (natural(375, 500), 224, GLOBAL),
        (natural(375, 500), 96, LOCAL),
        (natural(200, 150), 224, GLOBAL),  # enlarges
        (drawing(72), 32, GLOBAL),
        (drawing(72), 16, LOCAL),
        (natural(2400, 2500), 96, GLOBAL),
    ],
    ids=["global", "local", "enlarged", "drawing global", "drawing local", "large"],
)
def test_pixels_are_pillows(image: np.ndarray, size: int, scale: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(10):
        box = sample_box(rng, *image.shape[:2], scale)
        crop = resize_crop(image, box, size)
        assert crop.shape == (size, size, 3)
        assert crop.dtype == np.uint8
        errors.append(np.abs(crop - pillow_crop(image, box, size)).mean())
    assert max(errors) < 1  # of 255, what is promised
    assert np.mean(errors) < 0.35  # what rounding between the axes explains


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_without_the_library(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "simd", None)
    image = np.concatenate([natural(90, 120)] * 2, axis=2)[..., :channels]
    box = Box(11, 7, 60, 81)
    crop = resize_crop(image, box, 32)
    assert crop.shape == (32, 32, channels)
    for plane in range(channels):
        expected = pillow_crop(np.repeat(image[..., plane : plane + 1], 3, axis=2), box, 32)
        np.testing.assert_array_equal(crop[..., plane], expected[..., 0])


def test_nothing_outside_of_the_box_is_read() -> None:
    """A black frame around the box would darken the edge of the crop."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:50, 20:60] = 255
    assert (resize_crop(image, Box(10, 20, 40, 40), 16) == 255).all()
    assert (resize_crop(image, Box(10, 20, 40, 40), 64) == 255).all()


def test_threads_do_not_meet() -> None:
    """Grain reads in threads."""
    image, boxed = natural(375, 500), boxes(375, 500, LOCAL, 50)

    def make(_: int) -> np.ndarray:
        return np.stack([resize_crop(image, Box(*box), 96) for box in boxed.tolist()])

    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(make, range(8))
    assert all((other == first).all() for other in others)


@pytest.mark.parametrize("side", [72, 150])
def test_views_are_boxes_in_order_of_the_generator(side: int) -> None:
    image = drawing(side)
    found = sample_crops(np.random.default_rng(7), image, 20, 16, LOCAL)
    rng = np.random.default_rng(7)
    flips = rng.random(20) < 0.5
    for crop, flip in zip(found, flips, strict=True):
        expected = pillow_crop(image, sample_box(rng, side, side, LOCAL), 16)
        assert np.abs(crop - (expected[:, ::-1] if flip else expected)).mean() < 1


def test_half_of_the_crops_are_flipped() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    crops = sample_crops(np.random.default_rng(0), image, 400, 8, (1.0, 1.0))
    bright_left = crops[:, :, 0].mean((1, 2)) > 128
    assert 0.43 < bright_left.mean() < 0.57


def test_no_crops_and_tiny_pictures() -> None:
    rng = np.random.default_rng(0)
    assert sample_crops(rng, drawing(72), 0, 16, LOCAL).shape == (0, 16, 16, 3)
    point = np.full((1, 1, 3), 200, np.uint8)
    assert (sample_crops(rng, point, 2, 8, LOCAL) == 200).all()
    strip = np.full((20, 20000, 3), 90, np.uint8)
    assert (sample_crops(rng, strip, 2, 8, GLOBAL) == 90).all()


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (72, 72), (30, 400)])
@pytest.mark.parametrize(("resize_px", "size_px"), [(64, 56), (64, 64)])
def test_evaluation_crop_is_pillows(shape: tuple[int, int], resize_px: int, size_px: int) -> None:
    image = natural(*shape)
    short = min(shape)
    height, width = (resize_px * side // short for side in shape)
    left, top = round((width - size_px) / 2), round((height - size_px) / 2)
    expected = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    expected = expected.crop((left, top, left + size_px, top + size_px))
    np.testing.assert_array_equal(center_crop(image, resize_px, size_px), np.asarray(expected))


def test_evaluation_crop_of_a_strip_stays_small() -> None:
    image = natural(40, 2000)
    strip = center_crop(image, 20, 16)
    whole = Image.fromarray(image).resize((1000, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((492, 2, 508, 18))).astype(int)
    assert np.abs(strip - expected).max() <= 1
    assert center_crop(np.full((1, 20000, 3), 7, np.uint8), 256, 224).min() == 7


def test_evaluation_crop_pads_with_black() -> None:
    square = center_crop(np.full((50, 50, 3), 9, np.uint8), 24, 32)
    assert (square[4:28, 4:28] == 9).all()
    assert square.sum() == 24 * 24 * 3 * 9
