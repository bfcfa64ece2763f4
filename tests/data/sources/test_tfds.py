"""Prepared TFDS data sets."""

import pickle
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.sources.tfds import Tfds


def save(path: Path, value: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (value, 0, 0)).save(path, "PNG")
    return path.read_bytes()


def prepare_tfds(folder: Path) -> str:
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
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

    builder = TinyShapes(data_dir=str(folder / "prepared"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tfds_gives_raw_bytes_and_labels(tmp_path: Path) -> None:
    source = open_source("tfds", prepare_tfds(tmp_path), "train")
    assert isinstance(source, Tfds)
    assert len(source) == 6
    raw = [source[row] for row in range(6)]
    assert {bytes(record) for record in raw} == {
        (tmp_path / "raw" / f"6-{row}.png").read_bytes() for row in range(6)
    }
    reds = np.array([decode(record)[0, 0, 0] for record in raw])
    np.testing.assert_array_equal(source.labels, reds >= 120)
    assert source.class_names == ("low", "high")
    assert pickle.loads(pickle.dumps(source))[3] == raw[3]
    assert len(open_source("tfds", str(source._title.removesuffix("/train")), "test")) == 2
    with pytest.raises(SourceError, match="split='validation'"):
        open_source("tfds", source._title.removesuffix("/train"), "validation")
