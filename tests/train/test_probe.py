"""k-NN while training: which pictures it reads, and why there is none."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.sources.tfds import Tfds
from dinov2_jax.features import extractor as extractor_module
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.train import probe as probe_module
from dinov2_jax.train.probe import linear_top1, make_probe
from dinov2_jax.train.setup import make_networks
from tests.data.sources.tiny_tfds import prepare_tfds
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
    wrong = {"eval.test_split": "tset"}
    assert "split='tset'" in probe_of(tmp_path / "sets", **wrong)[1]
    with pytest.raises(SourceError, match="split='tset'"):
        probe_of(tmp_path / "sets", **wrong, **{"eval.labels": "folders"})


class Costly:
    """A source whose labels cost the read of their records, as those of TFDS do."""

    class_names = ("cat", "dog")

    def __init__(self, count: int, unknown: tuple[int, ...] = ()) -> None:
        self.count, self.unknown = count, unknown
        self.asked: list[int] = []

    @property
    def labels(self):
        raise AssertionError("reads every record")

    def labels_of(self, rows):
        self.asked += list(rows)
        return np.array([-1 if row in self.unknown else row % 2 for row in rows], np.int64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return np.full((8, 8, 3), 50 + 100 * (index % 2), np.uint8)

    def name(self, index: int) -> str:
        return str(index)


def test_labels_of_the_chosen_records_alone_are_read(tmp_path, monkeypatch):
    sources = {"train": Costly(1000, unknown=(0,)), "test": Costly(600)}
    monkeypatch.setattr(probe_module, "open_source", lambda *rest, split, **named: sources[split])
    probe, why = probe_of(tmp_path, **{"eval.max_pictures": 20})
    assert "20 pictures of test among 20 of train" in why
    assert all(len(source.asked) <= 8 for source in sources.values())  # is there any label?
    config = tiny_config()
    model = make_networks(config, drop_path=False).backbone
    params = model.init(jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
    with jax.set_mesh(make_mesh()):
        found = probe({"backbone": params})
        probe({"backbone": params})
    assert all(len(source.asked) <= 28 for source in sources.values())  # once, not every time
    assert 0 <= found["knn_top1"] <= 100
    rows, labels = probe._splits[0].labelled
    assert len(rows) == len(labels) == 19 and 0 not in rows


def test_labels_are_kept_in_the_run_for_its_next_start(tmp_path, monkeypatch):
    rows, read = [], Tfds._read_labels
    monkeypatch.setattr(Tfds, "_read_labels", lambda s, r: (rows.extend(r), read(s, r))[1])
    path = str(prepare_tfds(tmp_path))
    config = tiny_config(**{"data.source": "tfds", "data.path": path, "eval.test_split": "test"})
    model, asked = make_networks(config, drop_path=False).backbone, []
    for _ in range(2):
        rows.clear()
        probe, why = make_probe(config, model, tmp_path / "run")
        assert "2 pictures of test among 6 of train" in why
        rows.clear()  # some are read to see whether there are labels
        found = [split.labelled[1].tolist() for split in probe._splits]
        asked.append((len(rows), found))
    assert asked[1] == (0, asked[0][1]) and len(list((tmp_path / "run").iterdir())) == 2


def test_devices_share_the_pictures(tmp_path, monkeypatch):
    """Before, every device computed every picture."""
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            fill(tmp_path / split / label, 8)
    probe, _ = probe_of(tmp_path, **{"eval.batch_size": 16})
    config, seen = tiny_config(), []
    model = make_networks(config, drop_path=False).backbone
    params = model.init(jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
    forward = extractor_module.forward

    def looking(params, images, readable, **rest):
        seen.append({shard.data.shape[0] for shard in images.addressable_shards})
        return forward(params, images, readable, **rest)

    monkeypatch.setattr(extractor_module, "forward", looking)
    with jax.set_mesh(make_mesh()):
        probe({"backbone": params})
    assert len(jax.devices()) == 8 and seen == [{2}, {2}]
