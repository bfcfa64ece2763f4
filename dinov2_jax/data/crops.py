"""Random resized crops and flips in uint8: torchvision's box law, Pillow's bicubic pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

ASPECT = (3 / 4, 4 / 3)  # torchvision's default for RandomResizedCrop
_ATTEMPTS = 10
_SUPPORT = 2.0  # half width of the cubic kernel, in pixels of the coarser grid
_BLOCK = 16
_SMALL_PIXELS = 128 * 128  # up to here all crops are made in one go
_MAX_CROP_PIXELS = 4_000_000  # larger crops are first averaged, see _shrink

cv2.setNumThreads(1)  # parallelism is a matter of worker processes; threads on top oversubscribe


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


def sample_box(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]
) -> Box:
    """Draws the box of torchvision's RandomResizedCrop for a picture of height x width px.

    Area uniform in `scale` of the picture's, aspect ratio log-uniform in 3/4 .. 4/3; after ten
    draws that do not fit, the largest central box whose aspect ratio is allowed.
    """
    log_low, log_high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for u_area, u_aspect, u_top, u_left in rng.random((_ATTEMPTS, 4)).tolist():
        area = height * width * (scale[0] + u_area * (scale[1] - scale[0]))
        aspect = math.exp(log_low + u_aspect * (log_high - log_low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w)
    return _central_box(height, width)


def _central_box(height: int, width: int) -> Box:
    w, h = width, height
    if width / height < ASPECT[0]:
        h = min(height, max(1, round(width / ASPECT[0])))
    elif width / height > ASPECT[1]:
        w = min(width, max(1, round(height * ASPECT[1])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


class _Block(NamedTuple):
    out: slice  # samples that this block computes
    taps: slice  # samples that it reads
    weights: np.ndarray  # float32 [out, taps]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5, as in Pillow (OpenCV has a = -0.75)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


# Boxes are whole pixels, so weights depend on two integers only and soon all are known. An entry
# of a 224 px crop holds about 30 KB: 30 MB in a worker at most.
@functools.lru_cache(maxsize=1024)
def _blocks(in_size: int, out_size: int) -> tuple[_Block, ...]:
    """The antialiased cubic weights from `in_size` to `out_size` samples, as dense blocks.

    The matrix is a narrow band. Blocks of 16 rows read about 16 * scale + 4 * scale samples each,
    so most of the zeros are never multiplied, and BLAS still gets dense operands.
    """
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    centres = (np.arange(out_size) + 0.5) * scale
    first = np.maximum((centres - _SUPPORT * stretch + 0.5).astype(int), 0)
    last = np.minimum((centres + _SUPPORT * stretch + 0.5).astype(int), in_size)
    size = _BLOCK if out_size > 2 * _BLOCK else out_size
    blocks = []
    for start in range(0, out_size, size):
        rows = slice(start, min(start + size, out_size))
        taps = slice(int(first[rows.start]), int(last[rows.stop - 1]))
        position = np.arange(taps.start, taps.stop)
        weights = _cubic((position - centres[rows, None] + 0.5) / stretch)
        inside = (position >= first[rows, None]) & (position < last[rows, None])
        weights = np.where(inside, weights, 0.0)
        weights /= weights.sum(1, keepdims=True)
        blocks.append(_Block(rows, taps, weights.astype(np.float32)))
    return tuple(blocks)


def _shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """Averages whole pixels of a very large crop, which float32 would blow up to gigabytes.

    What remains is at least four times the output, where the plain mean differs from the cubic
    kernel by 0.25 of 255.
    """
    height, width = pixels.shape[:2]
    down, across = max(1, height // (4 * size)), max(1, width // (4 * size))
    if height * width <= _MAX_CROP_PIXELS or down * across == 1:
        return pixels
    smaller = -(-width // across), -(-height // down)
    averaged = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    return averaged.reshape(*averaged.shape[:2], -1)  # OpenCV drops an axis of one channel


def resize_crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """`crop(box).resize((size, size), BICUBIC)` of Pillow: uint8 [H, W, C] -> [size, size, C].

    The same antialiased weights in float32 with one rounding at the end, where Pillow rounds
    after each axis: mean difference 0.2 of 255, at about half of Pillow's time.
    """
    top, left, height, width = box
    pixels = _shrink(image[top : top + height, left : left + width], size)
    height, width, channels = pixels.shape
    rows = pixels.astype(np.float32).reshape(height, width * channels)
    tall = np.empty((size, width * channels), np.float32)
    for out, taps, weights in _blocks(height, size):
        np.matmul(weights, rows[taps], out=tall[out])
    planes = np.concatenate(cv2.split(tall.reshape(size, width, channels)))
    small = np.empty((channels * size, size), np.float32)
    for out, taps, weights in _blocks(width, size):
        np.matmul(planes[:, taps], weights.T, out=small[:, out])
    return _interleave(small.reshape(channels, size, size))


def _interleave(planes: np.ndarray) -> np.ndarray:
    """float32 [C, H, W] -> uint8 [H, W, C], rounded and saturated."""
    merged = cv2.merge(tuple(planes)).reshape(planes.shape[1], -1)  # OpenCV adds 4 channels at most
    return cv2.add(merged, 0.0, dtype=cv2.CV_8U).reshape(*planes.shape[1:], len(planes))


def resize_small(
    image: np.ndarray, boxes: Sequence[Box], flips: Sequence[bool], size: int
) -> np.ndarray:
    """All crops of a small picture at once: the pixels of `resize_crop`, uint8 [V, S, S, C].

    Weights are laid out over the whole picture, which costs multiplications but only a dozen calls:
    0.03 ms a crop of a 72 px picture, where one by one is 0.08 and Pillow 0.05 to 0.1.
    """
    height, width, channels = image.shape
    views = len(boxes)
    vertical = np.zeros((views, size, height), np.float32)
    horizontal = np.zeros((views, size, width), np.float32)
    for view, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
        vertical[view, :, box.top : box.top + box.height] = _matrix(box.height, size)
        across = _matrix(box.width, size)
        rows = across[::-1] if flip else across
        horizontal[view, :, box.left : box.left + box.width] = rows
    pixels = image.astype(np.float32).reshape(height, width * channels)
    tall = vertical.reshape(views * size, height) @ pixels
    planes = np.stack(cv2.split(tall.reshape(views * size, width, channels)))
    small = planes.reshape(channels, views, size, width) @ horizontal.transpose(0, 2, 1)
    merged = _interleave(small.reshape(channels, views * size, size))
    return merged.reshape(views, size, size, channels)


@functools.lru_cache(maxsize=1024)
def _matrix(in_size: int, out_size: int) -> np.ndarray:
    matrix = np.zeros((out_size, in_size), np.float32)
    for out, taps, weights in _blocks(in_size, out_size):
        matrix[out, taps] = weights
    return matrix


def sample_crops(
    rng: np.random.Generator,
    image: np.ndarray,
    number: int,
    size: int,
    scale: tuple[float, float],
) -> np.ndarray:
    """`number` random resized crops, each flipped with probability 1/2, uint8 [V, S, S, C]."""
    height, width, channels = image.shape
    flips = (rng.random(number) < 0.5).tolist()
    boxes = [sample_box(rng, height, width, scale) for _ in range(number)]
    if number and height * width <= _SMALL_PIXELS:
        return resize_small(image, boxes, flips, size)
    crops = np.empty((number, size, size, channels), np.uint8)
    for view, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
        crop = resize_crop(image, box, size)
        crops[view] = crop[:, ::-1] if flip else crop
    return crops


def center_crop(image: np.ndarray, resize_px: int, size_px: int) -> np.ndarray:
    """Shorter side to `resize_px` (Pillow's bicubic), then the central square of `size_px`.

    The evaluation transform of the reference; a picture that stays smaller than the square is
    padded with black, as torchvision pads.
    """
    height, width, channels = image.shape
    if channels not in (1, 3):  # which Pillow has no mode for
        planes = np.split(image, channels, axis=2)
        return np.concatenate([center_crop(x, resize_px, size_px) for x in planes], axis=2)
    short = min(height, width)
    new = np.array([resize_px * width // short, resize_px * height // short])
    shown = np.minimum(new, size_px)
    corner = np.round((new - shown) / 2)
    picture = Image.fromarray(image if channels == 3 else image[:, :, 0])
    if new.max() > 16 * size_px:
        # A strip of 20,000 x 1 px would become 1.3 gigapixel: only what is shown is computed.
        scale = np.array([width, height]) / new
        box = tuple(float(x) for x in (*(corner * scale), *((corner + shown) * scale)))
        part = picture.resize(tuple(shown.tolist()), Image.Resampling.BICUBIC, box=box)
    else:
        if tuple(new) != picture.size:
            picture = picture.resize(tuple(new.tolist()), Image.Resampling.BICUBIC)
        part = picture.crop(tuple(int(x) for x in (*corner, *(corner + shown))))
    square = np.zeros((size_px, size_px, channels), np.uint8)
    left, top = (size_px - shown) // 2
    pixels = np.asarray(part).reshape(shown[1], shown[0], channels)
    square[top : top + shown[1], left : left + shown[0]] = pixels
    return square
