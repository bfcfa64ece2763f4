"""16-bit colour that uses fewer bits, as cameras and detectors write it."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import BadImage, decode, from_pillow

DEPTHS = (1023, 4095, 16383)
KINDS = {"gray and alpha": 4, "RGB": 2, "RGBA": 6}  # PNG's numbers


def ramp(greatest: int, channels: int = 3) -> np.ndarray:
    """uint16 [8, 64, channels] from 0 to `greatest`, other in each channel."""
    values = np.linspace(0, greatest, 8 * 64).astype(np.uint16).reshape(8, 64)
    return np.stack([np.roll(values, 7 * c) for c in range(channels)], axis=2)


def png(values: np.ndarray, kind: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: np.ndarray, order: str, deflate: bool = False) -> bytes:
    """One strip. `order`: "<" or ">"; compressed files are read by libtiff instead of Pillow."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    compression = 8 if deflate else 1
    pixels += bytes(len(pixels) % 2)
    bits, start = 8 + len(pixels), b"II*\0" if order == "<" else b"MM\0*"
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, bits), (259, 3, 1, compression),
        (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height),
        (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        field = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        table += struct.pack(f"{order}HHI", tag, kind, count) + field
    depths = struct.pack(f"{order}{channels}H", *[16] * channels)
    directory = struct.pack(f"{order}I", bits + len(depths))
    return start + directory + pixels + depths + table + bytes(4)


def ppm(values: np.ndarray) -> bytes:
    height, width = values.shape[:2]
    return b"P6 %d %d 65535\n" % (width, height) + values.astype(">u2").tobytes()


def wanted(values: np.ndarray, greatest: int) -> np.ndarray:
    return np.rint(values / greatest * 255)


@pytest.mark.parametrize("greatest", DEPTHS)
def test_files_of_16_bit_colour_are_scaled_by_their_depth(greatest: int) -> None:
    values = ramp(greatest)
    files = (png(values, 2), tiff(values, "<"), tiff(values, ">"), ppm(values))
    files += tiff(values, "<", deflate=True), tiff(values, ">", deflate=True)
    for raw in files:
        np.testing.assert_array_equal(decode(raw), wanted(values, greatest))


def test_all_16_bits_in_use_stay_the_upper_byte() -> None:
    values = ramp(65535)
    assert (decode(png(values, 2)) == values >> 8).all()
    dark = ramp(255)  # 8 bits in a 16-bit file
    assert (decode(png(dark, 2)) == dark).all()


def test_alpha_of_the_same_or_of_full_depth() -> None:
    for opaque in (4095, 65535):
        values = np.concatenate([ramp(4095), np.full((8, 64, 1), opaque, np.uint16)], axis=2)
        np.testing.assert_array_equal(decode(png(values, 6)), wanted(values[..., :3], 4095))
        gray = values[..., [0, 3]]
        expected = np.repeat(wanted(values[..., :1], 4095), 3, axis=2)
        np.testing.assert_array_equal(decode(png(gray, 4)), expected)


def test_orientation_is_kept() -> None:
    exif = Image.Exif()
    exif[274] = 6
    file = BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PNG", exif=exif)
    raw, at = png(ramp(4095), 2), file.getvalue().index(b"eXIf") - 4
    length = struct.unpack(">I", file.getvalue()[at : at + 4])[0] + 12
    raw = raw[:33] + file.getvalue()[at : at + length] + raw[33:]
    assert decode(raw).shape == (64, 8, 3)
    assert decode(raw).max() == 255


def test_a_pillow_picture_is_the_same_as_its_file(tmp_path) -> None:
    raw = png(ramp(4095), 2)
    (tmp_path / "deep.png").write_bytes(raw)
    for opened in (Image.open(BytesIO(raw)), Image.open(tmp_path / "deep.png")):
        np.testing.assert_array_equal(from_pillow(opened), decode(raw))
        np.testing.assert_array_equal(np.asarray(opened), ramp(4095) >> 8)  # stays the caller's


def test_formats_whose_lower_bytes_are_lost_are_refused() -> None:
    values = ramp(4095)
    planes = b"".join(values[::-1, :, c].astype(">u2").tobytes() for c in range(3))
    sgi = struct.pack(">HBBHHHH", 474, 0, 2, 3, 64, 8, 3).ljust(512, b"\0") + planes
    with pytest.raises(BadImage, match=r"14 bits or fewer.* SGI file; convert it to PNG"):
        decode(sgi)
    plain = b"P3 2 1 65535 4095 0 9 5 6 7\n"
    with pytest.raises(BadImage, match=r"14 bits or fewer.* PPM file; convert it to PNG"):
        decode(plain)
