"""Pictures once, in the order asked for, fitted to whole patches."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.crops import center_crop
from dinov2_jax.data.decode import DecodeSpec, decode, why_unreadable
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.stream import stream_pictures

SQUARE = Fit("center_crop", (32,), 36, 8)


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    rng = np.random.default_rng(0)
    for row in range(20):
        pixels = rng.integers(0, 256, (48, 60 + row, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row:02d}.png")
    (tmp_path / "05.png").write_bytes(b"no picture")
    return Folder(str(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_come_in_order_and_cropped(source: Folder, workers: int) -> None:
    """20 rows are more than a chunk; a bad record has no pixels, and its neighbours are right."""
    rows = np.arange(20)[::-1]
    stream = stream_pictures(source, rows, SQUARE, decoding=DecodeSpec(), workers=workers)
    found = list(stream)
    assert [row for row, _ in found] == rows.tolist()
    for row, image in found:
        if row == 5:
            assert image is None
        else:
            np.testing.assert_array_equal(image, center_crop(decode(source[row]), 36, 32))


def test_sizes_differ_from_picture_to_picture(source: Folder) -> None:
    fit, rows = Fit("resize", (32,), 0, 8), np.array([0, 19])
    stream = stream_pictures(source, rows, fit, decoding=DecodeSpec(channels=1), workers=0)
    assert {row: image.shape for row, image in stream if image is not None} == {
        0: (32, 40, 1),
        19: (32, 56, 1),
    }


def test_why_a_picture_has_no_pixels(source: Folder) -> None:
    assert why_unreadable(source, 5, DecodeSpec()) == "not a picture in a known format"
    assert why_unreadable(source, 4, DecodeSpec()) is None
    assert why_unreadable(source, 4, DecodeSpec(max_pixels=100)) == (
        "64 x 48 px are more than max_pixels=100"
    )
