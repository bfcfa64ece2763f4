"""Copies made of a picture, as people and web pages make them: what a descriptor must withstand."""

import zlib
from collections.abc import Callable, Iterable, Mapping

import cv2
import numpy as np
import simplejpeg

Edit = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def copies(image: np.ndarray, row: int, seed: int, edits: Mapping[str, Edit]) -> list[np.ndarray]:
    """A copy of uint8 RGB [H, W, 3] by each edit, in their order; sizes may differ.

    What an edit draws by chance depends on (seed, row, name) alone. Blur and noise are in pixels
    and grey levels of the picture as it comes, so bring pictures to one size first.
    """
    return [edit(image, generator(seed, row, name)) for name, edit in edits.items()]


def generator(seed: int, row: int, name: str) -> np.random.Generator:
    """The chance of one edit of one picture."""
    return np.random.default_rng([seed, row, zlib.crc32(name.encode())])


def _jpeg(quality: int) -> Edit:
    def edit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raw = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality)
        return simplejpeg.decode_jpeg(raw)

    return edit


def _down_up(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A quarter of the width and back."""
    height, width = image.shape[:2]
    small = (max(1, width // 4), max(1, height // 4))
    small = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), 3.0)


def _linear(gain: float, pivot: float) -> Edit:
    def edit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _to_uint8((image - np.float32(pivot)) * np.float32(gain) + np.float32(pivot))

    return edit


def _grey(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)


def _hue(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """By 30 degrees; OpenCV counts hue in steps of two."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int32) + 15) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _to_uint8(image + rng.normal(0, 20, image.shape).astype(np.float32))


def _crop(share: float) -> Edit:
    """A window of `share` of both sides, anywhere."""

    def edit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = (max(1, round(share * side)) for side in image.shape[:2])
        top = rng.integers(image.shape[0] - height + 1)
        left = rng.integers(image.shape[1] - width + 1)
        return np.ascontiguousarray(image[top : top + height, left : left + width])

    return edit


def _rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """By 5 degrees either way; the corners are white."""
    height, width = image.shape[:2]
    angle = 5.0 if rng.random() < 0.5 else -5.0
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    white = (255, 255, 255)
    return cv2.warpAffine(image, turn, (width, height), borderMode=0, borderValue=white)


def _text_band(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Letters on a dark band over the lowest sixth."""
    image = image.copy()
    height = len(image)
    band = max(1, height // 6)
    image[height - band :] = image[height - band :] // 4
    text = "".join(chr(letter) for letter in rng.integers(65, 91, 24))
    origin = (band // 3, height - max(1, band // 4))
    font, thick = cv2.FONT_HERSHEY_SIMPLEX, max(1, band // 12)
    cv2.putText(image, text, origin, font, band / 30, (255, 255, 255), thick, cv2.LINE_AA)
    return image


def _border(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White, a tenth of each side."""
    high, wide = (max(1, side // 10) for side in image.shape[:2])
    return np.pad(image, ((high, high), (wide, wide), (0, 0)), constant_values=255)


def _flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


def _quarter_turn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(image))


def _collage(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of four tiles, shrunk to half its sides; the others are soft fields of colour."""
    height, width = (max(2, side) for side in image.shape[:2])
    low, wide = height // 2, width // 2
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    canvas = cv2.resize(coarse, (2 * wide, 2 * low), interpolation=cv2.INTER_CUBIC)
    down, right = divmod(int(rng.integers(4)), 2)
    tile = cv2.resize(image, (wide, low), interpolation=cv2.INTER_AREA)
    canvas[down * low : (down + 1) * low, right * wide : (right + 1) * wide] = tile
    return canvas


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


# Edits that leave a picture the same to the eye; a descriptor is judged by them.
EDITS_14: Mapping[str, Edit] = {
    "jpeg_30": _jpeg(30),
    "jpeg_8": _jpeg(8),
    "resize_4": _down_up,
    "blur_3": _blur,
    "brightness_1.4": _linear(1.4, 0.0),
    "contrast_0.6": _linear(0.6, 128.0),
    "grey": _grey,
    "hue_30": _hue,
    "noise_20": _noise,
    "crop_90": _crop(0.9),
    "crop_70": _crop(0.7),
    "rotate_5": _rotate,
    "text_band": _text_band,
    "white_border": _border,
}
# With five that move or lose most of it.
EDITS_19: Mapping[str, Edit] = {
    **EDITS_14,
    "crop_50": _crop(0.5),
    "crop_25": _crop(0.25),
    "flip": _flip,
    "rotate_90": _quarter_turn,
    "collage_quarter": _collage,
}
# What every picture on the web has been through: a descriptor that loses these is of no use.
PLAIN = ("jpeg_30", "jpeg_8", "resize_4")


def indices(edits: Mapping[str, Edit], names: Iterable[str]) -> list[int]:
    """The places of `names` among `edits`."""
    places = {name: place for place, name in enumerate(edits)}
    return [places[name] for name in names]
