"""Every kind of picture that real folders hold."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import MAX_PIXELS, BadImage, DecodeSpec, decode

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def two_colours(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 24 x 16."""
    image = Image.new("RGB", (24, 16), RED)
    image.paste(BLUE, (12, 0, 24, 16))
    return image.convert(mode)


def check_colours(pixels: np.ndarray, left: tuple, right: tuple, tolerance: int = 0) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    middle = pixels.shape[0] // 2
    for column, expected in ((3, left), (-4, right)):
        assert np.abs(pixels[middle, column].astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "PPM", "TGA", "WEBP"])
def test_lossless_forms(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    check_colours(decode(encode(two_colours(), form, **options)), RED, BLUE)


@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["444", "422", "420"])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_jpeg_is_pillows(subsampling: int, progressive: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((401, 303), Image.Resampling.BICUBIC)
    options = {"quality": 90, "subsampling": subsampling, "progressive": progressive}
    raw = encode(image, "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(raw)))
    np.testing.assert_array_equal(decode(raw), expected)


def test_a_plain_jpeg_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that was decoded smaller must not: all of its pixels would be in memory first."""
    seen = []

    def spy(raw: bytes, **_: object) -> np.ndarray:
        seen.append(raw)
        raise ValueError("Pillow has to do it")

    monkeypatch.setattr("dinov2_jax.data.decode.simplejpeg.decode_jpeg", spy)
    raw = encode(two_colours().resize((800, 600)), "JPEG")
    check_colours(decode(raw), RED, BLUE, 4)
    assert seen == [raw]
    decode(raw, DecodeSpec(min_side_px=70))
    decode(encode(two_colours("L"), "JPEG"))
    decode(encode(two_colours("CMYK"), "JPEG"))
    assert seen == [raw]


def test_palette() -> None:
    check_colours(decode(encode(two_colours("P"), "PNG")), RED, BLUE)


def test_palette_with_transparency_lies_on_white() -> None:
    image = two_colours("P")
    index = image.getpixel((0, 0))
    check_colours(decode(encode(image, "PNG", transparency=index)), WHITE, BLUE)
    alphas = bytes(0 if entry == index else 255 for entry in range(256))
    check_colours(decode(encode(image, "PNG", transparency=alphas)), WHITE, BLUE)


def test_rgba_lies_on_white() -> None:
    image = two_colours("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 12, 16))
    image.paste((0, 0, 0, 128), (12, 0, 24, 16))
    check_colours(decode(encode(image, "PNG")), WHITE, (127, 127, 127), 1)


def test_gray_and_alpha() -> None:
    image = Image.new("LA", (24, 16), (50, 255))
    image.paste((50, 0), (12, 0, 24, 16))
    check_colours(decode(encode(image, "PNG")), (50,) * 3, WHITE)


def test_rgb_with_a_transparent_colour() -> None:
    check_colours(decode(encode(two_colours(), "PNG", transparency=RED)), WHITE, BLUE)


def test_gray_and_bilevel() -> None:
    gray = Image.new("L", (24, 16), 77)
    check_colours(decode(encode(gray, "JPEG")), (77,) * 3, (77,) * 3, 1)
    check_colours(decode(encode(Image.new("1", (24, 16), 1), "PNG")), WHITE, WHITE)


def test_cmyk() -> None:
    raw = encode(two_colours("CMYK"), "JPEG", quality=95)
    check_colours(decode(raw), RED, BLUE, 6)


def test_sixteen_bit_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 24).astype(np.uint16)
    raw = encode(Image.fromarray(np.tile(values, (16, 1))), "PNG")
    found = decode(raw)[0, :, 0]
    np.testing.assert_array_equal(found, np.rint(values / 257.0))
    raw = encode(Image.fromarray(np.tile(values, (16, 1))), "TIFF")
    np.testing.assert_array_equal(decode(raw)[0, :, 0], found)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_depth_of_a_detector_is_found(bits: int) -> None:
    values = np.tile(np.linspace(0, 2**bits - 1, 24).astype(np.uint16), (16, 1))
    found = decode(encode(Image.fromarray(values), "PNG"))[0, :, 0]
    np.testing.assert_allclose(found, np.linspace(0, 255, 24), atol=1)


def test_thirty_two_bit_and_float() -> None:
    counts = np.tile(np.arange(24, dtype=np.int32) * 1_000_000, (16, 1))
    found = decode(encode(Image.fromarray(counts), "TIFF"))
    assert (found.min(), found.max()) == (0, 255)
    unit = np.tile(np.linspace(0, 1, 24, dtype=np.float32), (16, 1))
    found = decode(encode(Image.fromarray(unit), "TIFF"))[0, :, 0]
    np.testing.assert_array_equal(found, np.rint(unit[0] * 255))
    unit[0] *= np.float32(3.4e38)
    unit[0, 0] = -3.4e38
    assert decode(encode(Image.fromarray(unit), "TIFF"))[0, [0, -1], 0].tolist() == [0, 255]
    unit[0, 0] = np.nan
    assert decode(encode(Image.fromarray(unit), "TIFF")).shape == (16, 24, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # bright in the upper left
    # what a camera stores so that a viewer shows `upright`
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    found = decode(encode(image, "JPEG", quality=95, exif=exif))
    assert found.shape == (16, 24, 3)
    assert np.abs(found.astype(int) - upright).mean() < 3


# pytest drops the filter that `decode` sets for Pillow's remarks
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning:PIL.TiffImagePlugin")
def test_damaged_exif_does_not_matter() -> None:
    raw = encode(two_colours(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    check_colours(decode(raw), RED, BLUE, 12)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in (RED, GREEN, BLUE)]
    raw = encode(frames[0], form, save_all=True, append_images=frames[1:], duration=50)
    check_colours(decode(raw), RED, RED, 3)


def test_one_pixel_and_a_long_strip() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), RED), "PNG")).tolist() == [[[255, 0, 0]]]
    strip = decode(encode(Image.new("RGB", (20_000, 20), GREEN), "JPEG"))
    assert strip.shape == (20, 20_000, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_truncated_is_bad(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    raw = encode(Image.fromarray(noise), form)
    with pytest.raises(BadImage):
        decode(raw[: len(raw) // 2])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is a text", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"\xff\xd8\xff\xe0", "."),
        (bytes(1000), "not a picture"),
    ],
)
def test_no_picture_at_all(raw: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(raw)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)


def test_decompression_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(BadImage, match=f"60000 x 60000 px are more than max_pixels={MAX_PIXELS}"):
        decode(png_header(60_000, 60_000))


def test_a_large_jpeg_is_decoded_smaller() -> None:
    raw = encode(two_colours().resize((800, 600)), "JPEG")
    small = decode(raw, DecodeSpec(max_pixels=200_000))
    assert small.shape == (300, 400, 3)
    check_colours(small, RED, BLUE, 4)
    with pytest.raises(BadImage, match="max_pixels"):
        decode(raw, DecodeSpec(max_pixels=5_000))  # 1/8 of the side is still more
    # a progressive file holds all its coefficients in memory whatever the scale
    progressive = encode(two_colours().resize((800, 600)), "JPEG", progressive=True)
    for needed_px in (None, 50):
        with pytest.raises(BadImage, match="max_pixels"):
            decode(progressive, DecodeSpec(max_pixels=200_000, min_side_px=needed_px))


def test_draft_keeps_twice_what_the_crops_need() -> None:
    raw = encode(two_colours().resize((840, 630)), "JPEG")
    assert decode(raw, DecodeSpec(min_side_px=158)).shape == (630, 840, 3)  # not more than 4 times
    assert decode(raw, DecodeSpec(min_side_px=150)).shape == (315, 420, 3)
    assert decode(raw, DecodeSpec(min_side_px=70)).shape == (158, 210, 3)


def test_importing_and_decoding_change_no_global_of_the_host_program() -> None:
    """Pillow's guard against decompression bombs and the warning filters belong to the program."""
    script = """
import io, threading, warnings
import numpy, simplejpeg  # numpy itself adds filters
from PIL import Image
before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
from dinov2_jax.data.decode import BadImage, decode
assert before == (Image.MAX_IMAGE_PIXELS, warnings.filters) and before[0]
file = io.BytesIO()
Image.new("RGB", (24, 16), "red").save(file, "PNG")

def work():
    for _ in range(200):
        decode(file.getvalue())
        try:
            decode(b"no picture")
        except BadImage:
            pass

threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert before == (Image.MAX_IMAGE_PIXELS, warnings.filters)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env=env)
