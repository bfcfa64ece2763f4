"""Encoded bytes -> uint8 RGB, gray or more channels, for whatever real folders hold."""

from __future__ import annotations

import contextlib
import warnings
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

# 100 million pixels take 1.1 GB for a moment: 4 bytes each in Pillow, twice 3 on the way to numpy.
MAX_PIXELS = 100_000_000
# Plugins that neither start other programs (EPS, WMF) nor hide a second picture (ICO, ICNS).
_WANTED = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"),
    *("TGA", "PCX", "SGI", "QOI", "DDS", "PSD", "XBM"),
)
# Pillow registers most plugins only when asked to, and a build may lack some (AVIF).
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
_NPY = b"\x93NUMPY"
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

# Pillow's own limit is a warning at 89 million pixels and an error at 179 million, by a global
# and before a JPEG can be scaled down: `decode` checks the size in the header instead.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(Exception):
    """A record that cannot be decoded; the text says why."""


def decode(
    raw: bytes,
    max_pixels: int = MAX_PIXELS,
    min_side_px: int | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Decodes any common picture, or the bytes of a .npy file, to uint8 [H, W, channels].

    A picture has 3 channels, RGB, or 1, their luma; any other number needs a .npy file of uint8
    [H, W, channels].

    Alpha is laid on white, EXIF rotation is applied, deeper values are scaled to 8 bits, of an
    animation the first frame is taken. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if it
    has more than `max_pixels`, or if its shorter side is more than 4 `min_side_px`, the side in
    px that the crops need (then at least 2 `min_side_px` remain).

    Raises:
      BadImage: not a picture, truncated, larger than `max_pixels`, or of other channels.
    """
    if not raw:
        raise BadImage("the file is empty")
    try:
        if raw.startswith(_NPY):
            return to_channels(_decode_npy(raw, max_pixels), channels)
        return to_channels(_decode_picture(raw, max_pixels, min_side_px), channels)
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("not enough memory to decode it") from error
    except Exception as error:  # Pillow's plugins raise nearly any type on broken files
        raise BadImage(_reason(error)) from error


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W, C] -> [H, W, channels]: RGB to ITU-R 601 luma, gray to RGB, or as it is.

    Raises:
      BadImage: any other pair.
    """
    held = pixels.shape[2]
    if held == channels:
        return pixels
    if (held, channels) == (3, 1):
        return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    if (held, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    raise BadImage(
        f"it has {held} channels and config.model.in_channels is {channels}: other numbers than 1 "
        "and 3 need .npy files of uint8 [H, W, channels]"
    )


def _decode_npy(raw: bytes, max_pixels: int) -> np.ndarray:
    """[H, W] or [H, W, C] without a copy; a header that promises more than there is takes none."""
    stream = BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    shape, fortran, dtype = _NPY_HEADERS[version](stream)
    if dtype != np.uint8 or fortran or len(shape) not in (2, 3) or 0 in shape:
        raise BadImage(f"an array {dtype} {shape} is no picture: save uint8 [H, W, C] in C order")
    if shape[0] * shape[1] > max_pixels:
        raise BadImage(f"{shape[1]} x {shape[0]} px are more than max_pixels={max_pixels}")
    height, width, *channels = shape
    return np.frombuffer(raw, np.uint8, offset=stream.tell()).reshape(
        height, width, *channels or [1]
    )


def _decode_picture(raw: bytes, max_pixels: int, min_side_px: int | None) -> np.ndarray:
    """[H, W, 3]."""
    with Image.open(BytesIO(raw), formats=FORMATS) as image:
        whole = image.size
        _shrink_jpeg(image, max_pixels, min_side_px)
        _check_size(image, max_pixels)
        if image.size == whole and _is_plain_jpeg(image):
            with contextlib.suppress(ValueError):  # Pillow knows the reason, or puts up with it
                # Pillow's very pixels in 0.6 of its time, as Pillow copies them twice.
                return simplejpeg.decode_jpeg(raw, colorspace="RGB", strict=True)
        image.load()
        _turn_upright(image)
        return _to_rgb(image)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a known format"
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


def _shrink_jpeg(image: Image.Image, max_pixels: int, min_side_px: int | None) -> None:
    if image.format not in ("JPEG", "MPO"):
        return
    width, height = image.size
    side = min(width, height)
    if width * height > max_pixels and image.info.get("progressive"):
        return  # libjpeg holds all its coefficients at full size, whatever the scale: refused
    if min_side_px is not None and side > 4 * min_side_px:
        wanted = 2 * min_side_px / side
    elif width * height > max_pixels:
        wanted = 1 / 8
        while wanted < 1 and width * height * (2 * wanted) ** 2 <= max_pixels:
            wanted *= 2
    else:
        return
    image.draft("RGB", (max(1, int(width * wanted)), max(1, int(height * wanted))))


def _is_plain_jpeg(image: Image.Image) -> bool:
    """In colour and upright: nothing is left to do after decoding."""
    if image.format != "JPEG" or image.mode != "RGB":
        return False
    with contextlib.suppress(Exception):  # of a damaged EXIF block
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return False


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f"{width} x {height} px are more than max_pixels={max_pixels}")


def _turn_upright(image: Image.Image) -> None:
    # A damaged EXIF block is no reason to lose the picture.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "IF":
        gray = _scale_to_uint8(np.asarray(image), image.mode)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _scale_to_uint8(values: np.ndarray, mode: str) -> np.ndarray:
    """16 bits by their depth; 32 bits and floats by the range that their values suggest.

    Cameras and X-ray detectors store 10, 12 or 14 bits in files of 16: the depth is the least of
    8, 10, 12, 14 and 16 bits that holds the greatest value.
    """
    # float32 has 24 bits, enough for 8 of output; in place, as 100 million values are 0.4 GB
    values = values.astype(np.float32)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    np.clip(values, -1e38, 1e38, out=values)  # so that no difference overflows
    low, high = float(values.min()), float(values.max())
    if mode.startswith("I;16") or (mode == "I" and low >= 0 and 255 < high <= 65535):
        values *= 255 / next(depth for depth in (255, 1023, 4095, 16383, 65535) if high <= depth)
    elif mode == "F" and low >= 0 and high <= 1:
        values *= 255
    elif low < 0 or high > 255:
        values -= low
        values *= 255 / max(high - low, 1e-12)
    return np.rint(values, out=values).astype(np.uint8)
