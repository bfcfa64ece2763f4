"""k-NN while training: which pictures it reads, and why there is none."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.train.probe import linear_top1, make_probe
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


def test_both_figures_equal_the_evaluations_own(tmp_path):
    """k-NN and the best of 13 linear classifiers of the probe's very features; time is told."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog", "eel")):
            for i in range(12):
                (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 120, (8, 8, 3)) + 60 * (np.arange(3) == label)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / split / name / f"{i}.png")
    probe, why = probe_of(tmp_path, **{"eval.linear_iterations": 50})
    config = tiny_config()
    model = make_networks(config, drop_path=False).backbone
    params = model.init(jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
    with jax.set_mesh(make_mesh()):
        found = probe({"backbone": params})
    assert "and 13 linear classifiers" in why
    assert found["probe_s"] > 0 and found["linear_top1"] > 50
    bank = np.eye(3)[[0, 0, 1]].astype(np.float32), np.array([4, 4, 7])
    query = np.eye(3)[[0, 1, 2]].astype(np.float32), np.array([4, 7, 5])
    assert linear_top1(bank, query, 50, make_mesh()) == pytest.approx(200 / 3)  # 5 is unknown


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
