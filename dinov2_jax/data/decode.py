"""From a record of a source to pixels: uint8 RGB, gray or more channels."""

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import simplejpeg
from numpy.lib import format as npy
from PIL import ExifTags, Image, ImageOps

from dinov2_jax.data.depth import has_16_bit_colour, scale_colour, scale_to_uint8, strips
from dinov2_jax.data.sources.source import Source

# 100 million pixels take 1.3 GB for a moment at most: 4 bytes each in Pillow, 3 in numpy; 16-bit
# colour takes 4 bytes twice more before numpy has it.
MAX_PIXELS = 100_000_000
# Plugins that neither start other programs (EPS, WMF) nor hide a second picture (ICO, ICNS).
_WANTED = (
    "JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM",
    "TGA", "PCX", "SGI", "QOI", "DDS", "PSD", "XBM",
)  # fmt: skip
# Pillow registers most plugins only when asked to, and a build may lack some (AVIF).
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
_NPY = b"\x93NUMPY"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# Held while Pillow's guards are off, so that threads restore what they found.
_GUARDS = threading.Lock()


class BadImage(Exception):
    """A record that cannot be decoded; the text says why."""


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """How records become pixels."""

    max_pixels: int = MAX_PIXELS  # larger pictures are bad records
    channels: int = 3  # RGB; 1 is luma; any other number needs .npy files of uint8 [H, W, channels]
    # Shorter side that the crops need: a much larger JPEG is decoded smaller. None: none is.
    min_side_px: int | None = None


WHOLE_RGB = DecodeSpec()


def load_record(source: Source, index: int, spec: DecodeSpec) -> np.ndarray:
    """Record `index` as uint8 [H, W, channels]; BadImage, which says why, where it cannot be."""
    try:
        record = source[index]
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    if isinstance(record, np.ndarray):
        return to_channels(record, spec.channels)
    return decode(record, spec)


def why_unreadable(source: Source, index: int, spec: DecodeSpec) -> str | None:
    """Why record `index` cannot be read, or None if it can."""
    try:
        load_record(source, index, spec)
    except BadImage as error:
        return str(error)
    return None


def decode(raw: bytes, spec: DecodeSpec = WHOLE_RGB) -> np.ndarray:
    """Decodes any common picture, or the bytes of a .npy file, to uint8 [H, W, channels].

    Alpha is blended on white, EXIF rotation is applied, values of more than 8 bits are scaled to 8
    bits, and an animation gives its first frame. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size
    if it has more than `max_pixels`, or if its shorter side exceeds 4 `min_side_px`; at least 2
    `min_side_px` remain. Raises BadImage for what is no picture, truncated, larger than
    `max_pixels`, or of other channels.
    """
    if not raw:
        raise BadImage("the file is empty")
    try:
        is_array = raw.startswith(_NPY)
        pixels = _decode_npy(raw, spec.max_pixels) if is_array else _decode_picture(raw, spec)
        return to_channels(pixels, spec.channels)
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("not enough memory to decode it") from error
    except Exception as error:  # Pillow's plugins raise nearly any type on broken files
        raise BadImage(_reason(error)) from error


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W, C] -> [H, W, channels]: RGB to ITU-R 601 luma, gray to RGB, or unchanged.

    Raises BadImage for any other pair of channel numbers.
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
    """[H, W, C] without a copy; a header that promises more bytes than there are fails."""
    stream = BytesIO(raw)
    try:
        shape, fortran, dtype = _HEADERS[npy.read_magic(stream)](stream)
    except Exception as error:  # numpy passes on what Python's own parser raises
        raise BadImage("the header of this .npy file is damaged, or of a later version") from error
    if dtype != np.uint8 or fortran or len(shape) not in (2, 3) or min(shape) < 1:
        raise BadImage(f"an array {dtype} {shape} is no picture: save uint8 [H, W, C] in C order")
    if shape[0] * shape[1] > max_pixels:
        raise BadImage(f"{shape[1]} x {shape[0]} px are more than max_pixels={max_pixels}")
    return np.frombuffer(raw, np.uint8, offset=stream.tell()).reshape((*shape, 1)[:3])


def _decode_picture(raw: bytes, spec: DecodeSpec) -> np.ndarray:
    with guards_off():
        image = Image.open(BytesIO(raw), formats=FORMATS)
        is_plain_jpeg = _is_plain_jpeg(image)
    with image:
        whole = image.size
        _shrink_jpeg(image, spec)
        width, height = image.size
        if width * height > spec.max_pixels:
            raise BadImage(f"{width} x {height} px are more than max_pixels={spec.max_pixels}")
        if image.size == whole and is_plain_jpeg:
            with contextlib.suppress(ValueError):  # Pillow tolerates it, or gives the reason
                # The same pixels as Pillow's; it is faster because Pillow copies them twice.
                return simplejpeg.decode_jpeg(raw, colorspace="RGB", strict=True)
        has_16_bits = has_16_bit_colour(image, raw)
        image.load()
        if has_16_bits:
            scale_colour(image, raw)
        _turn_upright(image)
        return _to_rgb(image)


@contextlib.contextmanager
def guards_off() -> Iterator[None]:
    """Without Pillow's size limit and its warnings about odd headers, for this block only.

    Its limit (a warning at 89 million pixels, an error at 179 million) is a global that it applies
    before a JPEG can be scaled down; `max_pixels` is judged after that.
    """
    with _GUARDS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a known format"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shrink_jpeg(image: Image.Image, spec: DecodeSpec) -> None:
    if image.format not in ("JPEG", "MPO"):
        return
    width, height = image.size
    side, too_large = min(width, height), width * height > spec.max_pixels
    if too_large and image.info.get("progressive"):
        return  # libjpeg holds all coefficients at full size, whatever the scale: refused
    if spec.min_side_px is not None and side > 4 * spec.min_side_px:
        wanted = 2 * spec.min_side_px / side
    elif too_large:
        fitting = (s for s in (1, 1 / 2, 1 / 4) if width * height * s**2 <= spec.max_pixels)
        wanted = next(fitting, 1 / 8)
    else:
        return
    image.draft("RGB", (max(1, int(width * wanted)), max(1, int(height * wanted))))


def _is_plain_jpeg(image: Image.Image) -> bool:
    """In colour and upright: after decoding nothing is left to do."""
    if image.format != "JPEG" or image.mode != "RGB":
        return False
    with contextlib.suppress(Exception):  # a damaged EXIF block
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return False


def _turn_upright(image: Image.Image) -> None:
    # A damaged EXIF block is no reason to lose the picture.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "IF":
        return np.repeat(scale_to_uint8(np.asarray(image), image.mode)[:, :, None], 3, axis=2)
    boxes = list(strips(image.size))
    if len(boxes) == 1:
        return _strip_to_rgb(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for box in boxes:
        pixels[box[1] : box[3]] = _strip_to_rgb(image.crop(box))
    return pixels


def _strip_to_rgb(image: Image.Image) -> np.ndarray:
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def from_pillow(picture: Image.Image) -> np.ndarray:
    """Gives a picture that Pillow holds, as `decode` gives that of a file: uint8 [H, W, 3].

    Raises BadImage where its pixels cannot be loaded.
    """
    raw = _file_of(picture)
    if raw and has_16_bit_colour(picture, raw):
        return decode(raw)
    try:
        picture = picture.copy()  # the caller's own stays as it is
        _turn_upright(picture)
        return _to_rgb(picture)
    except Exception as error:  # Pillow's plugins raise nearly any type on broken files
        raise BadImage(_reason(error)) from error


def _file_of(picture: Image.Image) -> bytes:
    """The file of a picture that is opened, but not loaded; else nothing."""
    file = getattr(picture, "fp", None)
    if file is None or not getattr(picture, "tile", None):
        return b""
    place = file.tell()
    file.seek(0)
    raw = file.read()
    file.seek(place)
    return raw
