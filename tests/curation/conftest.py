"""A small messy folder: pictures of shapes, copies of some, blank ones, and a broken file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

PICTURES = 24


def draw(number: int) -> Image.Image:
    """A picture of a dozen shapes that no other number has."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (96, 72), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = rng.integers((0, 0, 6, 6), (80, 60, 50, 50)).tolist()
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


@pytest.fixture(scope="session")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures; 4 have a JPEG copy, 3 a BMP of equal pixels, 2 a copy of the file."""
    folder = tmp_path_factory.mktemp("messy")
    for number in range(PICTURES):
        image = draw(number)
        image.save(folder / f"{number:03}.png")
        if number % 6 == 0:
            image.resize((72, 54)).save(folder / f"{number:03}_jpeg.jpg", quality=60)
        if number % 8 == 1:
            image.save(folder / f"{number:03}_equal.bmp")
        if number % 12 == 2:
            whole = (folder / f"{number:03}.png").read_bytes()
            (folder / f"{number:03}_same.png").write_bytes(whole)
    Image.new("RGB", (40, 40), "white").save(folder / "white.png")
    Image.new("RGB", (60, 30), "white").save(folder / "white_too.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder
