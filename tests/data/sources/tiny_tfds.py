"""A tiny data set, prepared by TFDS."""

import typing
import warnings
from pathlib import Path

import pytest
from PIL import Image


def save(path: Path, value: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (value, 0, 0)).save(path, "PNG")
    return path.read_bytes()


def prepare_tfds(folder: Path) -> Path:
    """Prepares 6 pictures of train and 2 of test as ArrayRecord.

    The pictures are left in `folder`/raw. Returns <folder>/prepared/tiny_shapes/1.0.0.
    """
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder
        url_infos: typing.ClassVar = {}  # looked up in the package otherwise

        def _info(self) -> object:
            label = tfds.features.ClassLabel(names=["low", "high"])
            features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _: object) -> dict:
            return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

        def _generate_examples(self, number: int) -> object:
            for row in range(number):
                path = folder / "raw" / f"{number}-{row}.png"
                save(path, 40 * row)
                yield str(row), {"image": str(path), "label": int(row >= number // 2)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder = TinyShapes(data_dir=str(folder / "prepared"), file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_dir)
