"""Protocols segmentation and segmentation_ms on a folder of small pictures with masks."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs.eval import default as eval_config
from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.errors import EvaluationError
from dinov2_jax.eval import published
from dinov2_jax.eval.protocols import segmentation
from dinov2_jax.eval.runner import evaluate
from dinov2_jax.eval.task import Context
from dinov2_jax.features.cache import FeatureCache
from dinov2_jax.heads.dense_head import load_dense
from dinov2_jax.metrics.segmentation import add_areas, count_areas, summary
from tests.eval.found import entry, values
from tests.features import tiny

NAMES = ("dark", "light", "green")
COLOURS = ((40, 40, 40), (220, 220, 220), (40, 200, 40))
SMALL = {
    "segmentation.iterations": 30,
    "segmentation.batch_size": 4,
    "segmentation.crop_size": 16,
    "segmentation.short_side": 20,
    "segmentation.rates": (0.03,),
    "segmentation.save_every": 10,
    "segmentation.pictures": 2,
    "data.set": "folder",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of coloured squares, whose colour is the class; one pixel row is ignored."""
    root, rng = tmp_path_factory.mktemp("data") / "squares", np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3), ("test", 4)):
        for suffix in ("", "_masks"):
            (root / f"{split}{suffix}").mkdir(parents=True)
        for i in range(count):
            mask = rng.integers(0, 3, (3, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            image = np.array(COLOURS)[mask] + rng.integers(-20, 20, (24, 32, 3))
            mask[0] = 255
            Image.fromarray(image.astype(np.uint8)).save(root / f"{split}/{i}.png")
            Image.fromarray(mask).save(root / f"{split}_masks/{i}.png")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return root


def ask(data, protocol="segmentation", **changes):
    config = eval_config.get_config()
    changes = {"protocols": (protocol,), "data.path": str(data)} | SMALL | changes
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return evaluate(ask(data), str(folder), tiny.backbone()), folder


def test_metrics_head_and_pictures(found, data):
    result, folder = found
    metrics = values(result, "segmentation")
    assert list(metrics) == ["miou", "aacc", "macc", *(f"iou {name}" for name in NAMES)]
    assert metrics["miou"] > 60  # by chance 20
    assert entry(result, "segmentation")["metrics"]["miou"]["n"] == 4
    task = folder / "segmentation/squares"
    names = sorted(p.name for p in task.iterdir() if not p.name.startswith("."))
    assert names == ["head.safetensors", "segmentation_0.png", "segmentation_1.png"]
    page = (folder / "results.html").read_text()
    assert page.count('class="plate"') == 2 and "Training loss" in page
    head = load_dense(task / "head.safetensors", "segmentation")
    assert head.class_names == NAMES and head.name == "segmentation of squares"


def test_the_metrics_are_those_of_the_heads_predictions(found, data):
    """mIoU again, from `predict` with the same windows."""
    result, folder = found
    head = load_dense(folder / "segmentation/squares/head.safetensors")
    areas = []
    for i in range(4):
        found_classes = head.predict(
            tiny.backbone(), data / f"test/{i}.png", short_side=20, window=16
        )
        true = np.asarray(Image.open(data / f"test_masks/{i}.png"))
        areas.append(count_areas(found_classes, true, 3))
    again = summary(add_areas(areas))
    # The windows of `predict` overlap by a third, too: 10 px of 16.
    assert again["miou"] == pytest.approx(values(result, "segmentation")["miou"], abs=0.5)


def test_a_given_head_is_judged_without_training(found, data, tmp_path, monkeypatch):
    result, folder = found
    monkeypatch.setattr(segmentation, "train_dense", None)
    head = folder / "segmentation/squares/head.safetensors"
    again = evaluate(ask(data, head=str(head)), str(tmp_path), tiny.backbone())
    assert values(again, "segmentation") == values(result, "segmentation")
    assert entry(again, "segmentation")["notes"]["trained_here"] is False
    # A finished result is skipped.
    monkeypatch.setattr(segmentation, "judge", None)
    assert evaluate(ask(data, head=str(head)), str(tmp_path), tiny.backbone()) == again


@pytest.mark.usefixtures("one_device")
def test_one_device_gives_the_same(found, data, tmp_path):
    alone = evaluate(ask(data), str(tmp_path), tiny.backbone())
    ours, theirs = values(alone, "segmentation"), values(found[0], "segmentation")
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_val_chooses_among_rates(data, tmp_path):
    rates = {"segmentation.rates": (1e-6, 0.03)}
    result = evaluate(ask(data, **rates), str(tmp_path), tiny.backbone())
    assert entry(result, "segmentation")["notes"]["rate"] == 0.03
    metric = entry(result, "segmentation")["metrics"]["miou"]
    assert metric["chosen_on"] == "val" and metric["value"] > 60
    (sweep,) = (c for c in entry(result, "segmentation")["curves"] if "mIoU" in c["title"])
    assert sweep["chosen"] == ["", 0.03] and sweep["log_x"]


def test_several_blocks_scales_and_mirrors(data, tmp_path):
    changes = {"segmentation.scales": (1.0, 1.5)}
    deep = tiny.backbone()
    with pytest.raises(EvaluationError, match="reads 4 blocks, but the backbone has 3"):
        evaluate(ask(data, "segmentation_ms", **changes), str(tmp_path), deep)
    model = deep.model.clone(depth=4)
    params = dict(deep.params)
    params["blocks"] = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), params["blocks"])
    four = type(deep)(model, params, deep.preprocessing, {}, "tiny", "bundle", ())
    result = evaluate(ask(data, "segmentation_ms", **changes), str(tmp_path), four)
    assert values(result, "segmentation_ms")["miou"] > 60
    assert entry(result, "segmentation_ms")["notes"]["blocks"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.set": "cifar10"}, "segmentation needs --config.data.set="),
        ({"segmentation.stride": 30}, "stride=30 px is more than the window of 16 px"),
        ({"segmentation.warmup_iterations": 31}, "are more than the 30 iterations"),
        ({"segmentation.rates": ()}, "rates is empty"),
    ],
)
def test_settings_that_cannot_be(changes, message, data, tmp_path):
    with pytest.raises(ConfigError, match=message):
        evaluate(ask(data, **changes), str(tmp_path), tiny.backbone())
    assert not (tmp_path / "segmentation").exists()


def test_heads_that_do_not_fit(found, data, tmp_path):
    path = found[1] / "segmentation/squares/head.safetensors"
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train", "train_masks", "test", "test_masks"):
        (other / name).symlink_to(data / name)
    for names, message in (("dark\nlight\n", "has 3 classes"), ("dark\nblue\ngreen\n", "'light'")):
        (other / "classes.txt").write_text(names)
        with pytest.raises(EvaluationError, match=message):
            evaluate(ask(other, head=str(path)), str(tmp_path / "out"), tiny.backbone())
    with pytest.raises(EvaluationError, match="trained on features of other weights"):
        evaluate(ask(data, head=str(path)), str(tmp_path / "out"), tiny.backbone(seed=1))


def test_masks_are_looked_at_before_training(data, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    for name in ("train", "train_masks", "test", "test_masks"):
        (broken / name).mkdir(parents=True)
        for file in (data / name).iterdir():
            (broken / name / file.name).write_bytes(file.read_bytes())
    (broken / "classes.txt").write_text((data / "classes.txt").read_text())
    (broken / "test_masks/2.png").write_bytes(b"no picture")
    monkeypatch.setattr(segmentation, "train_dense", None)
    with pytest.raises(SourceError, match=r"1 of 4 masks cannot be used.*2.png cannot be read"):
        evaluate(ask(broken), str(tmp_path / "out"), tiny.backbone())
    monkeypatch.undo()
    allowed = {"data.max_bad": 1}
    result = evaluate(ask(broken, **allowed), str(tmp_path / "out"), tiny.backbone())
    assert entry(result, "segmentation")["notes"]["unreadable"] == 1
    assert entry(result, "segmentation")["metrics"]["miou"]["n"] == 3


def test_the_papers_value_stands_beside_its_own_settings_only(monkeypatch, tmp_path):
    stored = json.loads(json.dumps(published._published()["pictures"]["ade20k"]))
    assert stored == [20210, 2000]
    base = tiny.backbone()
    sizes = {"dim": 384, "depth": 12, "patch_size": 14, "registers": 0}
    small = type(base)(base.model.clone(**sizes), {}, base.preprocessing, {}, "x", "bundle", ())
    config = eval_config.get_config()
    cache = FeatureCache(tmp_path, base, config)
    context = Context(small, config, cache)
    counts = {"train": 20210, "test": 2000}
    for protocol, value in (("segmentation", 44.3), ("segmentation_ms", 47.2)):
        found = published.dense_value(context, protocol, "ade20k", "miou", **counts)
        assert found == value
        assert published.dense_value(context, protocol, "ade20k", "aacc", **counts) is None
    fewer = {"train": 20210, "test": 1999}
    assert published.dense_value(context, "segmentation", "ade20k", "miou", **fewer) is None
