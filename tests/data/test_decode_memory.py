"""Large pictures are decoded strip by strip: the same pixels, in little memory."""

import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import decode


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK"])
def test_a_picture_of_several_strips_is_that_of_its_parts(mode):
    side = 1500  # two strips and a rest
    noise = np.random.default_rng(0).integers(0, 256, (75, 75, 4), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST)
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    form, options = ("TIFF", {}) if mode == "CMYK" else ("PNG", {})
    options = {"transparency": 3} if mode == "P" else options

    def read(part: Image.Image) -> np.ndarray:
        file = io.BytesIO()
        part.save(file, form, **options)
        return decode(file.getvalue())

    parts = [read(image.crop((0, top, side, top + 100))) for top in range(0, side, 100)]
    np.testing.assert_array_equal(read(image), np.concatenate(parts))


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_of_several_strips_is_that_of_its_parts(channels):
    values = np.random.default_rng(0).integers(0, 4096, (1500, 1500, channels)).astype(np.uint16)
    values[0], values[-1] = 4095, 4095

    def read(part: np.ndarray) -> np.ndarray:
        part = np.concatenate([part, values[:1]])  # so that each part has the same depth
        return decode(cv2.imencode(".png", part)[1].tobytes())[:-1]

    parts = [read(values[top : top + 300]) for top in range(0, 1500, 300)]
    np.testing.assert_array_equal(read(values), np.concatenate(parts))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_pixel_takes_at_most_16_bytes_for_a_moment(bits, tmp_path):
    """A copy of four channels is 4 bytes, and one of floats 16."""
    side = 4000
    if bits == 8:
        raw = png(Image.new("RGBA", (side, side), (9, 9, 9, 99)))
    else:
        raw = cv2.imencode(".png", np.full((side, side, 4), 4000, np.uint16))[1].tobytes()
    (tmp_path / "x.png").write_bytes(raw)
    script = """
import resource, sys
from dinov2_jax.data.decode import decode
raw = open(sys.argv[1], "rb").read()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, pixels = peak(), decode(raw)
print((peak() - before) / (pixels.shape[0] * pixels.shape[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x.png"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16
