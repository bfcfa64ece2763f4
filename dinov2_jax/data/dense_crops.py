"""Training crops for segmentation, in the order and by the laws of mmsegmentation 0.27.

Pictures are RGB here, BGR there; no step depends on the order. Draws come from one generator a
record, so values differ from the reference's, but not their distributions.
"""

from dataclasses import dataclass

import cv2
import numpy as np

IGNORED = 255  # a pixel without a class
ANY = 99_999_999  # px of a side that limits nothing
_TRIES = 10
_HUES = 180  # of OpenCV's 8-bit HSV


# ------------------------------------------------------------------------------------------- sizes
def rescaled(height: int, width: int, long_px: int, short_px: int) -> tuple[int, int]:
    """Height and width of a picture, resized to fit both limits and keep its proportions.

    `long_px` and `short_px` are the most px of the longer and the shorter side, in any order.
    """
    long_px, short_px = max(long_px, short_px), min(long_px, short_px)
    factor = min(long_px / max(height, width), short_px / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, C] -> [h, w, C], bilinear without antialias, as OpenCV does it."""
    if image.shape[:2] == size:
        return image
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[2])


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W] -> [h, w]: the value at floor(i * old / new)."""
    rows, cols = (
        np.minimum(np.arange(new) * old // new, old - 1)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], cols]


# ------------------------------------------------------------------------------------------- crops
def is_varied(labels: np.ndarray, most: float) -> bool:
    """Whether there is more than one class, and the largest has less than `most` of the pixels."""
    counts = np.bincount(labels.reshape(-1), minlength=IGNORED + 1)[:IGNORED]
    total = counts.sum()
    return bool((counts > 0).sum() > 1 and counts.max() / total < most)


def varied_box(
    rng: np.random.Generator, labels: np.ndarray, size: int, most: float
) -> tuple[slice, slice]:
    """A box of at most size x size px, drawn again while one class fills it; at most ten times.

    The box that is drawn after the tenth failure is taken as it is.
    """
    box = _box(rng, labels.shape, size)
    for _ in range(_TRIES):
        if is_varied(labels[box], most):
            break
        box = _box(rng, labels.shape, size)
    return box


def _box(rng: np.random.Generator, shape: tuple[int, ...], size: int) -> tuple[slice, slice]:
    top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in shape)
    return slice(top, top + size), slice(left, left + size)


# ------------------------------------------------------------------------------------------ colours
def linear(image: np.ndarray, factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Contrast (`factor`) or brightness (`shift`, grey levels), uint8, cut off to 0..255."""
    return _to_uint8(image.astype(np.float32) * np.float32(factor) + np.float32(shift))


def saturate(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the saturation, through OpenCV's 8-bit HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = linear(hsv[..., 1], factor)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def turn_hue(image: np.ndarray, shift: int) -> np.ndarray:
    """Turns the hue by `shift` of 180 steps, through OpenCV's 8-bit HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + shift) % _HUES
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def distort(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast comes after brightness, or last, by the toss of a coin.
    """

    def coin() -> bool:
        return bool(rng.integers(2))

    if coin():
        image = linear(image, shift=rng.uniform(-32, 32))
    contrast_first = coin()
    if contrast_first and coin():
        image = linear(image, rng.uniform(0.5, 1.5))
    if coin():
        image = saturate(image, rng.uniform(0.5, 1.5))
    if coin():
        image = turn_hue(image, int(rng.integers(-18, 18)))
    if not contrast_first and coin():
        image = linear(image, rng.uniform(0.5, 1.5))
    return image


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)  # cut off, not rounded


# ------------------------------------------------------------------------------------------- whole
@dataclass(frozen=True)
class SegmentationCrops:
    """A picture and its classes -> a training crop of `crop_px` a side.

    Attributes:
      crop_px: side of the crop.
      short_px, long_px: limits of the sides at ratio 1; `long_px` ANY limits nothing.
      ratios: factors of both limits, uniform between.
      most: share of a crop that one class may fill, before another crop is drawn.
      fill: colour of the px that a small picture lacks, at its right and lower end.
    """

    crop_px: int
    short_px: int
    long_px: int = ANY
    ratios: tuple[float, float] = (0.5, 2.0)
    most: float = 0.75
    fill: tuple[int, ...] = (124, 116, 104)

    def __call__(
        self, rng: np.random.Generator, image: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] and [H, W] -> [crop_px, crop_px, 3] and [crop_px, crop_px]."""
        low, high = self.ratios
        ratio = rng.uniform() * (high - low) + low
        limits = int(self.long_px * ratio), int(self.short_px * ratio)
        size = rescaled(*image.shape[:2], *limits)
        target = resize_labels(target, size)
        box = varied_box(rng, target, self.crop_px, self.most)
        image, target = resize_image(image, size)[box], target[box]
        if rng.random() < 0.5:
            image, target = image[:, ::-1], target[:, ::-1]
        return padded(distort(rng, np.ascontiguousarray(image)), target, self.crop_px, self.fill)


def padded(
    image: np.ndarray, target: np.ndarray, side: int, fill: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Adds px at the right and below: of one colour in the picture, ignored in the target."""
    height, width = target.shape
    if (height, width) == (side, side):
        return image, target
    # DINOv2: the reference pads zeros after normalising; this is the nearest 8-bit colour.
    whole = np.empty((side, side, image.shape[2]), np.uint8)
    whole[:] = np.resize(np.asarray(fill, np.uint8), image.shape[2])
    classes = np.full((side, side), IGNORED, target.dtype)
    whole[:height, :width], classes[:height, :width] = image, target
    return whole, classes
