"""A run, a bundle, a feature store and an evaluation as version 0.1.0 wrote them still open.

tests/golden/stored_run.zip was written by commit 74219b5, on one CPU device: four steps of a ViT of
width 24 on 20 drawn pictures, then k-NN and a linear probe, a bundle, and an embedding.
"""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

import dinov2_jax
from dinov2_jax.main import main
from dinov2_jax.run.metrics import read_metrics


@pytest.fixture
def stored(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked archive, which is also the working directory, as its paths are relative."""
    with zipfile.ZipFile(golden / "stored_run.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored_cls(stored: Path, split: str) -> np.ndarray:
    (file,) = stored.glob(f"run/eval/4/features/{split}-*/*/cls_block_1.npy")
    return np.load(file)


@pytest.mark.parametrize("weights", ["run", "exports/bundle/bundle"])
def test_weights_give_the_features_of_that_version(stored: Path, weights: str) -> None:
    pictures = sorted((stored / "labelled/val").rglob("*.png"))
    features = dinov2_jax.extract(weights, [str(picture) for picture in pictures])
    np.testing.assert_allclose(features["cls"], stored_cls(stored, "test"), atol=1e-5)


def test_the_run_continues(stored: Path) -> None:
    config = json.loads((stored / "run/config.json").read_text())
    recipe = stored / "recipe.py"
    recipe.write_text(
        "from configs import default\n\n\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        f"    for name, value in {small_leaves(config)!r}.items():\n"
        "        config.update_from_flattened_dict({name: value})\n"
        "    return config\n"
    )
    assert main(["main", f"--config={recipe}", "--workdir=run", "--config.total_steps=6"]) == 0
    steps = [row["step"] for row in read_metrics(stored / "run") if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def small_leaves(config: dict, prefix: str = "") -> dict:
    """The fields of a stored configuration, dotted, lists as tuples."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= small_leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = tuple(value) if isinstance(value, list) else value
    return found


def test_the_feature_store_is_complete(stored: Path) -> None:
    column = stored / "store/cls.npy"
    before = column.read_bytes(), column.stat().st_mtime_ns
    arguments = ["--config.weights=run", "--config.data.path=labelled/val"]
    recipe = Path(__file__).parents[2] / "configs/embed.py"
    command = ["main", f"--config={recipe}", *arguments, "--config.store.format=npy"]
    assert main([*command, "--workdir=store"]) == 0
    assert (column.read_bytes(), column.stat().st_mtime_ns) == before


def test_protocols_give_the_numbers_of_that_version(stored: Path) -> None:
    shutil.move(stored / "run/eval", stored / "old_eval")
    recipe = Path(__file__).parents[2] / "configs/eval/default.py"
    fields = {
        "protocols": "knn,linear_cached",
        "linear.iterations": 5,
        "linear.batch_size": 8,
        "knn.ks": 3,
        "checkpoint": "run",
        "data.source": "folder",
        "data.path": "labelled",
        "data.labels": "folders",
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    assert main(["main", f"--config={recipe}", *flags, "--workdir=new"]) == 0
    text = (stored / "new/results.json").read_text()
    assert "62.5" in text and "87.5" in text
