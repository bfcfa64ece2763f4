"""Photographs for the loader: a folder, or the ones that installed Python packages contain.

scikit-learn: china.jpg, flower.jpg. scikit-image: rocket.jpg, hubble_deep_field.jpg, retina.jpg,
and astronaut, chelsea, coffee and motorcycle, which are PNG and are encoded as JPEG here.
Also matplotlib's grace_hopper.jpg and ultralytics' bus.jpg and zidane.jpg if installed.
"""

import importlib.util
import itertools
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from dinov2_jax.bench.harness import BenchError

JPEG_QUALITY = 94  # as most of ImageNet's photographs
_FOLDERS = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        (
            "rocket.jpg",
            "hubble_deep_field.jpg",
            "retina.jpg",
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "motorcycle_left.png",
            "motorcycle_right.png",
        ),
    ),
    "matplotlib": ("mpl-data/sample_data", ("grace_hopper.jpg",)),
    "ultralytics": ("assets", ("bus.jpg", "zidane.jpg")),
}


def find_photos(folder: str) -> list[str]:
    """Paths of all JPEG files below `folder`, or of the packages' photographs if it is "".

    Raises:
      BenchError: if there are none.
    """
    if folder:
        suffixes = (".jpg", ".jpeg")
        paths = [p for p in sorted(Path(folder).rglob("*")) if p.suffix.lower() in suffixes]
    else:
        paths = [path for name in _FOLDERS for path in _in_package(name)]
    if not paths:
        raise BenchError(
            f"no JPEG photographs in {folder!r}; give --photos=FOLDER, or pip install "
            "scikit-learn scikit-image"
        )
    return [str(path) for path in paths]


def _in_package(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        return []
    folder, files = _FOLDERS[name]
    paths = [Path(spec.origin).parent / folder / file for file in files]
    return [path for path in paths if path.is_file()]


def write_photos(paths: Sequence[str], folder: Path, count: int) -> list[str]:
    """Writes `count` JPEG files to `folder`, repeating these photographs; returns their paths."""
    photos = [read_jpeg(path) for path in paths]
    files = [folder / f"{number:06}.jpg" for number in range(count)]
    for file, raw in zip(files, itertools.cycle(photos)):
        file.write_bytes(raw)
    return [str(file) for file in files]


def shrink_photos(paths: Sequence[str], folder: Path, longer_px: int) -> list[str]:
    """Writes JPEG files with a longer side of at most `longer_px`; returns their paths."""
    files = [folder / f"{Path(path).stem}.jpg" for path in paths]
    for path, file in zip(paths, files, strict=True):
        with Image.open(path) as image:
            picture = image.convert("RGB")
            picture.thumbnail((longer_px, longer_px), Image.Resampling.LANCZOS)
            picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return [str(file) for file in files]


def read_jpeg(path: str) -> bytes:
    """The file's bytes; other formats are encoded as JPEG."""
    raw = Path(path).read_bytes()
    if raw.startswith(b"\xff\xd8"):
        return raw
    with Image.open(BytesIO(raw)) as image, BytesIO() as out:
        image.convert("RGB").save(out, "JPEG", quality=JPEG_QUALITY)
        return out.getvalue()
