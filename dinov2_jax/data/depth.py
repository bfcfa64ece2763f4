"""Pixels of more than 8 bits: scaled to 8 bits by the depth that a file really uses.

Cameras and X-ray detectors store 10, 12 or 14 bits in 16-bit files. The depth is the least of 8,
10, 12, 14 and 16 bits that holds the greatest value.
"""

import sys
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
from PIL import Image

_GREATEST = (255, 1023, 4095, 16383, 65535)  # values of 8, 10, 12, 14 and 16 bits
# Pillow keeps the upper byte of 16-bit colour. Read in the other byte order, it keeps the lower.
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_STRIP_PIXELS = 1 << 20
_JPEG2000_START = b"\xff\x4f\xff\x51"  # then 38 bytes up to the depth of the first component


class LostDepthError(ValueError):
    """Pillow gives only the upper bytes of this format, which are too few."""


def scale_to_uint8(values: np.ndarray, mode: str) -> np.ndarray:
    """Scales 16-bit values by their depth, 32-bit values and floats by the range they suggest.

    Args:
      values: [H, W].
      mode: Pillow's name of the pixels' type: I, F or I;16 and the like.
    """
    # In float32, which is exact enough for 8 bits, and in place: 100 million values are 0.4 GB.
    values = values.astype(np.float32)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    np.clip(values, -1e38, 1e38, out=values)  # so that no difference overflows
    low, high = float(values.min()), float(values.max())
    if mode.startswith("I;16") or (mode == "I" and low >= 0 and 255 < high <= 65535):
        values *= 255 / _greatest(high)
    elif mode == "F" and low >= 0 and high <= 1:
        values *= 255
    elif low < 0 or high > 255:
        values -= low
        values *= 255 / max(high - low, 1e-12)
    return np.rint(values, out=values).astype(np.uint8)


def scale_colour(image: Image.Image, raw: bytes) -> None:
    """Scales a loaded picture of 16-bit colour by its depth, in place.

    Args:
      image: for which `has_16_bit_colour` was true before its pixels were loaded.
      raw: the file.

    Raises:
      LostDepthError: the values need their lower bytes, which Pillow does not give.
    """
    colours = zip(image.getbands(), image.getextrema(), strict=True)
    upper = max(high for band, (_, high) in colours if band != "A")
    if upper > -(-_GREATEST[-2] // 256):  # all 16 bits are used
        return
    values = _values_of_16_bits(raw)
    boxes = list(strips(image.size))
    greatest = _greatest(max(int(values(box)[..., :3].max()) for box in boxes))
    if greatest == _GREATEST[-1]:
        return
    deep_alpha = max(int(values(box)[..., 3:].max(initial=0)) for box in boxes) > greatest
    table = np.rint(np.arange(1 << 16) * np.float32(255 / greatest)).clip(max=255).astype(np.uint8)
    for box in boxes:
        pixels = table[values(box)]
        if deep_alpha:
            pixels[..., 3] = np.asarray(image.crop(box).getchannel("A"))
        image.paste(Image.fromarray(pixels), box[:2])


def strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of whole rows that cover a picture of (width, height) px.

    What needs several copies of the pixels works strip by strip: a copy of 100 million is 0.4 GB.
    """
    width, height = size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def has_16_bit_colour(image: Image.Image, raw: bytes) -> bool:
    """Whether an opened picture, not loaded yet, has 16 bits a colour, of which Pillow keeps 8."""
    if image.mode not in ("RGB", "RGBA", "RGBa", "LA"):
        return False
    if image.format == "SGI":
        return raw[3] == 2
    if image.format == "JPEG2000":
        start = raw.find(_JPEG2000_START)
        return start >= 0 and (raw[start + 42] & 127) + 1 == 16
    return ";16" in _rawmode(image) or (image.format == "PPM" and _ppm_range(image) == 65535)


def _greatest(value: float) -> int:
    return next(greatest for greatest in _GREATEST if value <= greatest)


def _rawmode(image: Image.Image) -> str:
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _ppm_range(image: Image.Image) -> int:
    args = image.tile[0].args
    return int(args[1]) if isinstance(args, tuple) and len(args) > 1 else 255


def _values_of_16_bits(raw: bytes) -> Callable[[tuple[int, int, int, int]], np.ndarray]:
    """A function that gives the values in a box of a file of 16-bit colour: uint16 [h, w, 3 or 4].

    Raises:
      LostDepthError: see `scale_colour`.
    """
    with Image.open(BytesIO(raw)) as image:
        rawmode, kind = _rawmode(image), image.format
        if kind == "PPM" and image.tile[0].codec_name == "ppm":
            rawmode = "RGB;16B"
    if rawmode == "LA;16B":  # of the four bytes, Pillow keeps the first and the third
        whole, upper, lower = _read_as(raw, "RGBA"), [0, 0, 0, 2], [1, 1, 1, 3]
        return lambda box: _join(*(np.asarray(whole.crop(box))[..., x] for x in (upper, lower)))
    if kind not in ("PNG", "TIFF", "PPM") or ";16" not in rawmode or rawmode.startswith("RGBa"):
        raise LostDepthError(
            f"its 16-bit colour uses 14 bits or fewer, and these cannot be read from such a {kind} "
            "file; convert it to PNG"
        )
    both = [_read_as(raw, order) for order in (rawmode[-1], _SWAPPED[rawmode[-1]])]
    return lambda box: _join(*(np.asarray(image.crop(box)) for image in both))


def _join(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    return upper.astype(np.uint16) << 8 | lower


def _read_as(raw: bytes, order: str) -> Image.Image:
    """The bytes that Pillow keeps if it takes the values to be in this order.

    `order` is B, L or N (big-endian, little-endian, the machine's), or a whole raw mode of Pillow.
    """
    with Image.open(BytesIO(raw)) as image:
        tiles = []
        for tile in image.tile:
            args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            codec, mode = tile.codec_name, order if len(order) > 1 else args[0][:-1] + order
            if image.format == "PPM":
                codec, args, mode = "raw", ("", 0, 1), f"RGB;16{order}"
            whole = (mode, *args[1:])
            tiles.append(tile._replace(codec_name=codec, args=whole if len(whole) > 1 else mode))
        image.tile = tiles
        image.load()
        return image
