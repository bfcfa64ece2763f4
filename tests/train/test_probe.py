"""k-NN while training: which pictures it reads, and why there is none."""

from pathlib import Path

import pytest
from PIL import Image

from dinov2_jax.data.sources import SourceError
from dinov2_jax.train.probe import make_probe
from dinov2_jax.train.setup import make_networks
from tests.train.tiny import tiny_config


def fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.png")


def probe_of(path: Path, **changes):
    values = {"data.source": "folder", "data.path": str(path), "eval.test_split": "test"}
    config = tiny_config(**values | changes)
    return make_probe(config, make_networks(config, drop_path=False).backbone)


def test_at_most_so_many_pictures_of_each_split(tmp_path):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            fill(tmp_path / split / label, 5)
    assert "10 pictures of test among 10 of train" in probe_of(tmp_path)[1]
    assert (
        "4 pictures of test among 4 of train" in probe_of(tmp_path, **{"eval.max_pictures": 4})[1]
    )
    fill(tmp_path / "val" / "eel", 1)
    probe, why = probe_of(tmp_path)
    assert probe is None and "such as 'eel'" in why


def test_why_there_is_none(tmp_path):
    fill(tmp_path / "flat", 3)
    none = (None, "no k-NN: the pictures have no labels")
    assert probe_of(tmp_path / "flat") == none
    fill(tmp_path / "sets" / "cat", 9)
    fill(tmp_path / "sets" / "dog", 9)
    wrong = {"eval.test_split": "dev"}
    assert "split='dev'" in probe_of(tmp_path / "sets", **wrong)[1]
    with pytest.raises(SourceError, match="split='dev'"):
        probe_of(tmp_path / "sets", **wrong, **{"eval.labels": "folders"})
