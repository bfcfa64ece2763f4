"""Random resized crops and flips in uint8: torchvision's boxes, Pillow's bicubic kernel."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

try:
    import cykooz_resizer as simd
except ImportError:  # there are no wheels for Linux and Windows on ARM
    simd = None

ASPECT = (3 / 4, 4 / 3)  # torchvision's default for RandomResizedCrop
_ATTEMPTS = 10
_CHANNELS = (1, 3)  # both libraries resize these at once, other numbers plane by plane


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

    The area is uniform in `scale` times that of the picture, the aspect ratio log-uniform in
    3/4 .. 4/3. After ten draws that do not fit, it is the largest central box of an allowed ratio.
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


def resize_crop(image: np.ndarray, box: Box, size: int, flip: bool = False) -> np.ndarray:
    """`crop(box).resize((size, size), BICUBIC)` of Pillow: uint8 [H, W, C] -> [size, size, C].

    `flip` swaps left and right. Nothing outside of the box is read. cykooz-resizer has Pillow's
    kernel (Keys' cubic with a = -0.5, antialiased) in vector instructions, several times faster. It
    resizes the axes in the other order, so that intermediate rounding differs: by 0.16 of 255 on
    average.
    """
    top, left, height, width = box
    pixels = image[top : top + height, left : left + width]
    resize = _resize_with_pillow if simd is None else _resize_with_simd
    channels = pixels.shape[2]
    parts = [pixels] if channels in _CHANNELS else np.split(pixels, channels, axis=2)
    parts = [resize(part, size) for part in parts]
    if flip:  # much faster than numpy's indexing
        parts = [cv2.flip(part, 1).reshape(part.shape) for part in parts]
    return np.concatenate(parts, axis=2)


def _resize_with_simd(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width, channels = pixels.shape
    kind = simd.PixelType(channels)
    source = simd.ImageData(width, height, kind, pixels.tobytes())
    crop = simd.ImageData(size, size, kind)
    cubic = simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
    # A resizer holds buffers. A new one for each crop costs 1 us, and threads share nothing.
    simd.Resizer().resize(source, crop, simd.ResizeOptions(cubic, use_alpha=False))
    return np.frombuffer(crop.get_buffer(), np.uint8).reshape(size, size, channels)


def _resize_with_pillow(pixels: np.ndarray, size: int) -> np.ndarray:
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    crop = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(crop).reshape(size, size, -1)


def sample_crops(
    rng: np.random.Generator, image: np.ndarray, number: int, size: int, scale: tuple[float, float]
) -> np.ndarray:
    """`number` random resized crops, each flipped with probability 1/2, uint8 [V, S, S, C]."""
    height, width, channels = image.shape
    flips = (rng.random(number) < 0.5).tolist()
    boxes = [sample_box(rng, height, width, scale) for _ in range(number)]
    crops = np.empty((number, size, size, channels), np.uint8)
    for view, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
        crops[view] = resize_crop(image, box, size, flip)
    return crops


def center_crop(image: np.ndarray, resize_px: int, size_px: int) -> np.ndarray:
    """Shorter side to `resize_px` (Pillow's bicubic), then the central square of `size_px`.

    The evaluation transform of the reference. A picture that remains smaller than the square is
    padded with black, as in torchvision.
    """
    height, width, channels = image.shape
    if channels not in _CHANNELS:  # Pillow has no mode for them
        planes = np.split(image, channels, axis=2)
        return np.concatenate([center_crop(x, resize_px, size_px) for x in planes], axis=2)
    short = min(height, width)
    new = np.array([resize_px * width // short, resize_px * height // short])
    shown = np.minimum(new, size_px)
    corner = np.round((new - shown) / 2)
    picture = Image.fromarray(image if channels == 3 else image[:, :, 0])
    if new.max() > 16 * size_px:
        # A strip of 20,000 x 1 px would become 1.3 gigapixel: compute the visible part only.
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
