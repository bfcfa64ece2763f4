"""Segmentation by frozen patches, whole: pictures with masks to figures, against scikit-learn."""

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from configs.eval import knn_segmentation as knn_config
from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.eval.runner import evaluate
from dinov2_jax.features.extract import extract
from dinov2_jax.heads.patch_segmentation import layouts_of, modes
from dinov2_jax.parallel import memory
from tests.eval.found import entry, values
from tests.features.tiny import PATCH, backbone, write_weights

SIDE, CLASSES = 16, 3
COUNTS = {"train": 12, "val": 4, "test": 5}
KS = (1, 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "bundle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("masks"))


def build(root, splits=COUNTS, ignored=("train", "val", "test")):
    """Stripes and boxes of three colours, with noise; an edge of some masks is no class."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    for split, count in splits.items():
        for kind in ("", "_masks"):
            (root / f"{split}{kind}").mkdir()
        for number in range(count):
            mask = np.full((24, 32), number % 2, np.uint8)
            mask[rng.integers(8, 14) :] = 2
            top, left = rng.integers(0, 12, 2)
            mask[top : top + 9, left : left + 12] = rng.integers(0, CLASSES)
            picture = 70 * mask[..., None] + 40 + rng.integers(-30, 30, (24, 32, 3))
            if split in ignored:
                mask[:, :3] = 255
            Image.fromarray(picture.astype(np.uint8)).save(root / split / f"{number}.png")
            Image.fromarray(mask).save(root / f"{split}_masks/{number}.png")
    return root


def ask(weights, folder, **changes):
    config = knn_config.get_config()
    settings = {"checkpoint": str(weights), "data.path": str(folder), "data.set": "folder"}
    small = {"image_px": SIDE, "ks": KS, "log10_c": (-2.0, 1.0), "count": 3, "pictures": 2}
    small = {f"knn_segmentation.{name}": value for name, value in small.items()}
    config.update_from_flattened_dict(settings | small | changes)
    return config


def patches_of(folder, split):
    """Features [pictures, P, D] and layouts, without the protocol."""
    paths = [str(folder / split / f"{i}.png") for i in range(COUNTS[split])]
    found = extract(backbone(), paths, features=("patches",), policy="resize", size=(SIDE, SIDE))
    masks = (Image.open(folder / f"{split}_masks/{i}.png") for i in range(COUNTS[split]))
    small = np.stack([np.asarray(m.resize((SIDE, SIDE), Image.Resampling.NEAREST)) for m in masks])
    return found["patches"].reshape(-1, 24), layouts_of(small, PATCH)


def miou(found, truth):
    known = truth != 255
    return 100 * jaccard_score(truth[known], found[known], average="macro")


def judged(train, queries, truth, method, at):
    """Mean IoU by scikit-learn."""
    scale = StandardScaler().fit(train[0].astype(np.float64))
    features, queries = scale.transform(train[0]), scale.transform(queries)
    if method == "logistic":
        peer = LogisticRegression(C=at, tol=1e-10, max_iter=5000).fit(features, modes(train[1]))
        return miou(np.repeat(peer.predict(queries)[:, None], PATCH**2, axis=1), truth)
    metric = "euclidean" if method == "l2" else method
    peer = KNeighborsClassifier(at, metric=metric, algorithm="brute").fit(features, train[1])
    return miou(peer.predict(queries), truth)


def test_equals_scikit_learn(weights, tmp_path, one_device):
    whole = build(tmp_path / "data", ignored=("test",))  # the peer lets ignored pixels vote
    found = evaluate(ask(weights, whole), str(tmp_path / "out"))
    train, val, test = (patches_of(whole, split) for split in COUNTS)
    methods = [(m, k) for m in ("cosine", "l2") for k in KS]
    on_val = [judged(train, *val, *method) for method in methods]
    assert len(set(on_val)) > 1
    both = [np.concatenate(pair) for pair in zip(train, val, strict=True)]
    chosen = methods[int(np.argmax(on_val))]
    notes, metrics = entry(found, "knn_segmentation")["notes"], values(found, "knn_segmentation")
    trial = next(t for t in notes["chosen"].values() if t["method"] != "logistic")
    assert (trial["method"], trial["at"]) == chosen
    assert trial["miou"] == pytest.approx(max(on_val))
    assert metrics["miou"] == pytest.approx(judged(both, *test, *chosen))
    strengths = (0.01, 10**-0.5, 10.0)
    logistic = [judged(train, *val, "logistic", C) for C in strengths]
    C = strengths[int(np.argmax(logistic))]
    assert notes["chosen"]["logistic"]["at"] == pytest.approx(C)
    expected = judged(both, *test, "logistic", C)
    assert metrics["miou, logistic regression"] == pytest.approx(expected)
    assert {"aacc", "macc", "iou sky", "iou road, logistic regression"} <= metrics.keys()
    curves = entry(found, "knn_segmentation")["curves"]
    assert sorted(curves[0]["lines"]) == ["L2", "cosine"] and len(curves) == 2


def test_what_results_say(weights, folder, tmp_path, one_device):
    found = evaluate(ask(weights, folder), str(tmp_path))
    result = entry(found, "knn_segmentation", folder.name)
    assert result["notes"]["pictures"] == {"learned from": 16, "judged": 5}
    assert result["metrics"]["miou"]["chosen_on"] == "val" and result["metrics"]["miou"]["n"] == 5
    assert len(result["pictures"]) == 2
    assert values(found, "knn_segmentation")["miou"] > 60
    with Image.open(tmp_path / result["pictures"][0]["file"]) as image:
        assert image.width > 300


def test_devices_change_nothing(weights, folder, tmp_path, monkeypatch):
    found, every = [], jax.devices()
    for count in (1, 2, 8):
        for name in ("devices", "local_devices"):
            monkeypatch.setattr(jax, name, lambda *_, n=count, **__: every[:n])
        result = evaluate(ask(weights, folder), str(tmp_path / str(count)))
        found.append(values(result, "knn_segmentation"))
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-6)


def test_a_share_of_train_chooses_where_there_is_no_val(weights, tmp_path, one_device):
    root = build(tmp_path / "data", {"train": 12, "test": 3})
    (root / "train/3.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"1 of 12 pictures of train cannot be read.*max_bad=1"):
        evaluate(ask(weights, root), str(tmp_path / "out"))
    ours = ask(weights, root, **{"data.max_bad": 1, "knn_segmentation.logistic": False})
    result = entry(evaluate(ours, str(tmp_path / "out")), "knn_segmentation")
    assert result["metrics"]["miou"]["chosen_on"] == "10 % of train"
    assert result["notes"]["unreadable"]["learned from"] == 1
    assert not any("logistic" in name for name in result["metrics"])
    few = ask(weights, root, **{"data.max_bad": 1, "knn_segmentation.max_patches": 80})
    notes = entry(evaluate(few, str(tmp_path / "few")), "knn_segmentation")["notes"]
    assert notes["pictures"]["learned from"] in (4, 5)  # 16 patches each


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.set": "nyu"}, r"needs --config\.data\.set \(of ade20k"),
        ({"data.test_split": "val"}, r"config\.data\.test_split means nothing"),
        ({"knn_segmentation.image_px": 18}, r"image_px=16"),
        ({"knn_segmentation.metrics": ("cos",)}, r"knows only cosine and l2"),
    ],
)
def test_settings_that_cannot_be_are_told_first(weights, folder, tmp_path, changes, told):
    with pytest.raises(ConfigError, match=told):
        evaluate(ask(weights, folder, **changes), str(tmp_path))


def test_too_little_memory_is_told_first(weights, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"use --config\.knn_segmentation\.max_patches="):
        evaluate(ask(weights, folder), str(tmp_path))
