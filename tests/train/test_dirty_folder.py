"""A folder with every kind of dirty file trains through; the report names what was skipped."""

import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_decode import png_header
from tests.train.test_resume import ROOT, command, environment, run

UNREADABLE = {"truncated.jpg", "text.png", "empty.jpg", "noise.webp", "bomb.png"}


@pytest.fixture(scope="module")
def dirty(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dirty")
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for i in range(12):
        photo.rotate(30 * i).save(folder / f"good_{i}.jpg")
    photo.convert("P").save(folder / "palette.png", transparency=3)
    photo.convert("RGBA").save(folder / "rgba.png")
    photo.convert("L").save(folder / "gray.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 65536, (40, 40), dtype=np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    photo.save(folder / "rotated.jpg", exif=exif)
    frames = [photo.rotate(90 * i) for i in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), "red").save(folder / "one_pixel.png")
    Image.new("RGB", (20_000, 12), "blue").save(folder / "wide.png")
    (folder / "unicodé ☃").mkdir()
    photo.save(folder / "unicodé ☃" / "名前.png")
    encoded = BytesIO()
    photo.save(encoded, "JPEG")
    (folder / "jpeg_called.png").write_bytes(encoded.getvalue())
    (folder / "no_extension").write_bytes(encoded.getvalue())
    (folder / "truncated.jpg").write_bytes(encoded.getvalue()[:500])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "noise.webp").write_bytes(rng.bytes(3000))
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (folder / "notes.txt").write_text("no picture, and no bad one either")
    (folder / "loop").symlink_to(folder)
    return folder


def skipped_names(workdir: Path) -> set[str]:
    lines = (workdir / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert all(len(line.split("\t")[1]) > 5 for line in lines)  # a reason each
    return {line.split("\t")[0] for line in lines}


def test_dirty_folder_trains_through(dirty, tmp_path):
    run(dirty, tmp_path, **{"data.max_bad_fraction": 0.3, "total_steps": 4})
    assert skipped_names(tmp_path) == UNREADABLE
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in UNREADABLE)


def test_too_many_bad_pictures_stop_the_run(dirty, tmp_path):
    done = subprocess.run(
        command(dirty, tmp_path), env=environment(1), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "5 of 29 pictures" in done.stderr
    assert "max_bad_fraction" in done.stderr
    assert "Traceback" not in done.stderr
    assert skipped_names(tmp_path) == UNREADABLE
    assert not (tmp_path / "metrics.jsonl").exists()
