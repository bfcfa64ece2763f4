"""Task "knn": everything but the checkpoint's path comes from the checkpoint."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import default
from configs.eval import knn as knn_config
from dinov2_jax.checkpoint import Checkpoints
from dinov2_jax.configuration import ConfigError, to_dict
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.sources import open_source
from dinov2_jax.eval.checkpoint_knn import evaluate
from dinov2_jax.eval.knn import knn_accuracy
from dinov2_jax.models.vit import from_config

STORED = {
    "model.variant": "vit_tiny",
    "model.dim": 24,
    "model.depth": 1,
    "model.heads": 3,
    "model.patch_size": 8,
    "model.layerscale": 1.0,
    "crops.global_size": 16,
    "data.source": "folder",
    "eval.labels": "folders",
    "eval.resize_size": 16,
    "eval.image_size": 16,
    "eval.batch_size": 16,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with one checkpoint of a random teacher, and its configuration."""
    root = tmp_path_factory.mktemp("knn")
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = root / "pictures" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        colour = 15 * (number % 3) + rng.integers(0, 150, (4, 4, 3))  # classes overlap
        Image.fromarray(colour.astype(np.uint8)).resize((16, 16)).save(folder / f"{number}.png")
    config = default.get_config()
    config.update_from_flattened_dict(STORED | {"data.path": str(root / "pictures")})
    model = from_config(config.model, 16)
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    checkpoints = Checkpoints(root / "run", keep_last=1, keep_every_steps=0)
    state = {"teacher": {"backbone": params}}
    checkpoints.save(7, state, loader={}, config=to_dict(config))
    checkpoints.close()
    return root / "run", config, model, params


def ask(checkpoint, **changes):
    config = knn_config.get_config()
    config.update_from_flattened_dict({"checkpoint": str(checkpoint), "ks": (1, 5, 200)} | changes)
    return config


def direct_features(run, split):
    """Features without the pipeline: the pictures are 16 px, so nothing is resized or cropped."""
    _, config, model, params = run
    source = open_source("folder", config.data.path, split=split, labels="folders")
    files = [f"{config.data.path}/{source.name(i)}" for i in range(len(source))]
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    normed = normalize(images, config.colour.mean, config.colour.std)
    return np.asarray(model.apply({"params": params}, normed)["cls"]), source.labels


def test_equals_a_direct_computation(run, capsys):
    folder = run[0]
    report = evaluate(ask(folder, **{"data.test_split": "test"}))
    bank, query = direct_features(run, "train"), direct_features(run, "test")
    expected = knn_accuracy(*bank, *query, ks=(1, 5, 200))
    assert report["results"]["full"] == expected
    assert expected[5]["top1"] not in (0, 100)
    assert (report["train_images"], report["test_images"]) == (len(bank[1]), len(query[1]))
    assert (report["step"], report["temperature"], report["image_size"]) == (7, 0.07, 16)
    assert report["ks_beyond_bank"] == [200]
    shown = capsys.readouterr().out
    assert "all of them vote" in shown and "top-1 %" in shown and "step 7" in shown
    written = json.loads((folder / "knn.json").read_text())
    assert written["results"]["full"]["5"] == expected[5]
    assert not list(folder.glob("*.tmp"))


def test_few_shot_and_another_workdir(run, tmp_path):
    config = ask(run[0], **{"data.test_split": "test", "n_per_class": (-1, 4), "n_tries": 2})
    report = evaluate(config, str(tmp_path / "out"))
    assert set(report["results"]) == {"full", "4 per class"}
    assert set(report["results"]["4 per class"]) == {1, 4}
    assert (tmp_path / "out" / "knn.json").exists()


def test_without_checkpoint_or_labels_says_what_to_do(run):
    with pytest.raises(ConfigError, match=r"--config\.checkpoint="):
        evaluate(knn_config.get_config())
    with pytest.raises(ConfigError, match=r"has no labels.*--config\.data\.labels=folders"):
        evaluate(ask(run[0], **{"data.labels": "none"}))
