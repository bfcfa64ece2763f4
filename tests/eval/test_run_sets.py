"""Protocols with data of their own, whole: miniature sets in their official layouts to figures."""

import json
import os
import pickle

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from configs.eval import default as eval_config
from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.imagenet_variants import CORRUPTIONS
from dinov2_jax.datasets.transfer import VOC_CLASSES
from dinov2_jax.errors import EvaluationError, UserError
from dinov2_jax.eval.runner import evaluate
from dinov2_jax.features.extract import extract
from dinov2_jax.heads.linear import load_head
from dinov2_jax.parallel import memory
from dinov2_jax.parallel.mesh import path_name
from dinov2_jax.weights.load import load
from tests.eval.found import entry, values
from tests.features.tiny import backbone, write_weights

pytestmark = pytest.mark.usefixtures("one_device")

WNIDS = ["n01440764", "n01443537", "n02119789"]
RNG = np.random.default_rng(0)


def save(path, label=0, noise=60):
    """A picture whose colours tell its class, more or less."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = np.eye(3)[label % 3] * 90 + 60
    pixels = base + RNG.integers(-noise, noise + 1, (16, 16, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, "PNG")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "bundle")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for label, wnid in enumerate(WNIDS):
        for number in range(9):
            save(root / "train" / wnid / f"{wnid}_{number}.JPEG", label)
        for number in range(4):
            name = f"ILSVRC2012_val_{4 * label + number + 1:08d}.JPEG"
            save(root / "val" / wnid / name, label)
    return root


def ask(weights, protocols, **changes):
    config = eval_config.get_config()
    config.update_from_flattened_dict(
        {
            "checkpoint": str(weights),
            "protocols": protocols,
            "linear.iterations": 60,
            "linear.batch_size": 32,
            "knn.ks": (1,),
        }
        | changes
    )
    return config


def features_of(paths):
    return extract(
        backbone(), [str(p) for p in paths], layers=(0, 1, 2), features=("cls", "mean_patch")
    )


def test_linear_then_robustness_on_every_variant(weights, imagenet, tmp_path):
    for label, wnid in enumerate(WNIDS):
        for number in range(2):
            save(tmp_path / "v2" / str(label) / f"{number}.jpeg", label, noise=90)
            save(tmp_path / "sketch" / wnid / f"{number}.jpeg", label, noise=90)
            save(tmp_path / "a" / wnid / f"{number}.jpeg", (label + 1) % 3)
        for corruption in CORRUPTIONS:
            for severity in range(1, 6):
                save(tmp_path / "c" / corruption / str(severity) / wnid / "0.JPEG", label)
    (tmp_path / "real.json").write_text(str([[0], [0, 1], [], *[[label] for label in [2] * 9]]))
    variants = {
        "imagenet_v2": "v2",
        "imagenet_sketch": "sketch",
        "imagenet_a": "a",
        "imagenet_c": "c",
        "imagenet_real": "real.json",
    }
    paths = {f"robustness.{name}": str(tmp_path / path) for name, path in variants.items()}
    data = {"data.set": "imagenet", "data.path": str(imagenet)}
    config = ask(weights, ("linear_cached", "robustness"), **data, **paths)
    found = evaluate(config, str(tmp_path / "out"))
    linear = entry(found, "linear_cached", "imagenet")
    assert values(found, "linear_cached")["top-1"] > 60
    assert {m["chosen_on"] for m in linear["metrics"].values()} == {"test"}
    assert len(linear["notes"]["accuracy_by_classifier"]) == 52
    head = load_head(tmp_path / "out" / "linear_cached" / "imagenet" / "head.safetensors")
    files = sorted((tmp_path / "v2").rglob("*.jpeg"))
    features = features_of(files)
    columns = [features[f"cls_block_{b}"] for b in (0, 1, 2)][-head.blocks :]
    columns += [features["mean_patch_block_2"]] * head.avgpool
    answers = (np.concatenate(columns, axis=1) @ head.weight.T + head.bias).argmax(axis=1)
    right = np.mean(answers == [int(p.parent.name) for p in files])
    robust = {data: values(found, "robustness", data) for data in found["results"]["robustness"]}
    assert robust["imagenet_v2"] == {"top-1": pytest.approx(100 * right)}
    assert robust["imagenet_a"]["top-1"] < robust["imagenet_sketch"]["top-1"]
    corrupted = entry(found, "robustness", "imagenet_c")
    assert set(corrupted["notes"]["errors"]) >= {"mCE", "mean error", *CORRUPTIONS}
    mce = corrupted["metrics"]["mCE"]
    assert not mce["higher_is_better"] and mce["n"] == 75 * len(WNIDS)
    assert set(robust) == {f"imagenet_{name}" for name in ("v2", "a", "sketch", "c", "real")}
    assert list(robust["imagenet_c"]) == ["mCE", "mean error"]
    assert list(robust["imagenet_real"]) == ["accuracy"]


def test_robustness_without_a_classifier_or_a_set_is_one_sentence(weights, imagenet, tmp_path):
    data = {"data.set": "imagenet", "data.path": str(imagenet)}
    with pytest.raises(ConfigError, match=r"at least one set"):
        evaluate(ask(weights, ("robustness",), **data), str(tmp_path))
    data["robustness.imagenet_v2"] = str(tmp_path / "v2")
    for label in range(3):
        save(tmp_path / "v2" / str(label) / "0.jpeg", label)
    with pytest.raises(
        ConfigError, match=r"has none of these weights.*protocols=linear,robustness"
    ):
        evaluate(ask(weights, ("robustness",), **data), str(tmp_path))
    save(tmp_path / "v2" / "3" / "0.jpeg")
    evaluate(ask(weights, ("linear_cached",), **data), str(tmp_path))
    with pytest.raises(SourceError, match=r"4 class folders, but the classifier has 3"):
        evaluate(ask(weights, ("robustness",), **data), str(tmp_path))
    (tmp_path / "v2" / "3" / "0.jpeg").unlink()
    (tmp_path / "v2" / "3").rmdir()
    assert values(evaluate(ask(weights, ("robustness",), **data), str(tmp_path)), "robustness")
    other = write_weights(tmp_path / "other", seed=1)
    with pytest.raises(
        ConfigError, match=r"robustness takes the result of linear or linear_cached"
    ):
        evaluate(ask(other, ("robustness",), **data), str(tmp_path / "out"))
    data["robustness.head"] = str(tmp_path / "linear_cached/imagenet/head.safetensors")
    with pytest.raises(ConfigError, match=r"trained on other weights"):
        evaluate(ask(other, ("robustness",), **data), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_a_later_protocol_lacks_is_said_before_the_first_runs(weights, imagenet, tmp_path):
    data = {"data.set": "imagenet", "data.path": str(imagenet)}
    with pytest.raises(ConfigError, match=r"retrieval needs --config\.retrieval\.set"):
        evaluate(ask(weights, ("knn", "retrieval"), **data), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"data\.train_labels means nothing for the set"):
        evaluate(
            ask(weights, ("knn",), **data, **{"data.train_labels": "x"}), str(tmp_path / "out")
        )
    assert not (tmp_path / "out").exists()


def test_the_probe_on_augmented_pictures_runs_and_learns(weights, imagenet, tmp_path):
    data = {"data.set": "imagenet", "data.path": str(imagenet)}
    found = evaluate(ask(weights, ("linear",), **data), str(tmp_path))
    assert values(found, "linear")["top-1"] > 60
    assert entry(found, "linear")["notes"]["trained_on"] == "random resized crops and flips"


def test_logistic_regression_on_several_classes_a_picture(weights, tmp_path):
    """VOC2007: 20 sigmoids, C by 11-point mAP on val, a fit on train and val."""
    for split, count in (("train", 40), ("val", 20), ("test", 20)):
        names = []
        for number in range(count):
            name = f"{split}{number:03}"
            shown = {number % 20, (7 * number) % 20}
            save(tmp_path / f"JPEGImages/{name}.jpg", number % 20)
            objects = "".join(
                f"<object><name>{VOC_CLASSES[c]}</name><difficult>0</difficult></object>"
                for c in shown
            )
            path = tmp_path / f"Annotations/{name}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"<annotation>{objects}</annotation>")
            names.append(name)
        path = tmp_path / f"ImageSets/Main/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names))
    data = {"data.set": "voc2007", "data.path": str(tmp_path), "logreg.count": 4}
    found = evaluate(ask(weights, ("logreg",), **data), str(tmp_path / "out"))
    outcome = entry(found, "logreg", "voc2007")
    assert set(outcome["metrics"]) == {"11-point mAP"}
    assert outcome["metrics"]["11-point mAP"]["value"] > 0
    assert outcome["metrics"]["11-point mAP"]["chosen_on"] == "val"
    assert outcome["notes"]["chosen_on"] == "val" and len(outcome["notes"]["trials"]) == 4
    with pytest.raises(ConfigError, match=r"one class a picture.*protocols=logreg"):
        evaluate(ask(weights, ("knn",), **data), str(tmp_path / "out"))


def test_logistic_regression_equals_scikit_learn_at_the_chosen_strength(
    weights, imagenet, tmp_path
):
    data = {"data.set": "imagenet", "data.path": str(imagenet), "logreg.count": 5}
    found = evaluate(ask(weights, ("logreg",), **data), str(tmp_path / "out"))
    notes = entry(found, "logreg")["notes"]
    splits = {s: sorted((imagenet / s).rglob("*.JPEG")) for s in ("train", "val")}
    features = {s: features_of(files)["cls_block_2"] for s, files in splits.items()}
    labels = {s: [WNIDS.index(f.parent.name) for f in files] for s, files in splits.items()}
    peer = LogisticRegression(C=notes["C"], tol=1e-10, max_iter=10_000)
    peer.fit(features["train"], labels["train"])
    score = 100 * peer.score(features["val"], labels["val"])
    assert values(found, "logreg")["top-1"] == pytest.approx(score)
    assert notes["chosen_on"] == "10 % of train"


def test_logistic_regression_beyond_the_memory_is_refused_at_once(
    weights, imagenet, tmp_path, monkeypatch
):
    data = {"data.set": "imagenet", "data.path": str(imagenet)}
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # 100 pages of 100 bytes
    with pytest.raises(ConfigError, match=r"27 pictures of 3 classes.*protocols=linear_cached"):
        evaluate(ask(weights, ("logreg",), **data), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_logistic_regression_beyond_a_device_or_container_is_refused_at_once(
    weights, imagenet, tmp_path, monkeypatch
):
    config = ask(weights, ("logreg",), **{"data.set": "imagenet", "data.path": str(imagenet)})
    monkeypatch.setattr(memory, "device_bytes", lambda: 2**10)
    with pytest.raises(ConfigError, match=r"device has free 0\.0; use.*protocols=linear_cached"):
        evaluate(config, str(tmp_path / "out"))
    limit = tmp_path / "memory.max"
    limit.write_text("4096\n")
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "none"), str(limit)))
    with pytest.raises(ConfigError, match=r"this machine has 0\.0; use --config"):
        evaluate(config, str(tmp_path / "out"))
    limit.write_text("max\n")
    assert memory.host_bytes() > 2**28
    assert not (tmp_path / "out").exists()


def test_revisited_oxford_ranks_by_cosine(weights, tmp_path):
    for number in range(4):
        save(tmp_path / f"jpg/all_souls_{number:06d}.jpg", number)
    for query in range(2):
        save(tmp_path / f"jpg/query_{query}.jpg", query)
    truth = {
        "imlist": [f"all_souls_{number:06d}" for number in range(4)],
        "qimlist": ["query_0", "query_1"],
        "gnd": [
            {"bbx": [0, 0, 16, 16], "easy": [0], "hard": [3], "junk": [2]},
            {"bbx": [0, 0, 16, 16], "easy": [], "hard": [1], "junk": []},
        ],
    }
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    settings = {"retrieval.set": "roxford5k", "retrieval.path": str(tmp_path)}
    out = evaluate(ask(weights, ("retrieval",), **settings), str(tmp_path / "out"))
    found = entry(out, "retrieval", "roxford5k")["notes"]["by_difficulty"]
    names = [f"all_souls_{n:06d}" for n in range(4)] + ["query_0", "query_1"]
    features = features_of([tmp_path / f"jpg/{name}.jpg" for name in names])["cls_block_2"]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    ranks = np.argsort(-unit[4:] @ unit[:4].T, axis=1).tolist()
    place = [row.index(hit) for row, hit in zip(ranks, (3, 1), strict=True)]
    place[0] -= sum(ranks[0].index(junk) < place[0] for junk in (0, 2))
    precisions = [(1 / (p + 1) + (p == 0)) / 2 for p in place]  # trapezoids under the curve
    assert found["hard"]["mAP"] == pytest.approx(100 * np.mean(precisions))
    assert values(out, "retrieval")["mAP, hard"] == found["hard"]["mAP"]


def test_scales_are_features_of_their_own(weights, tmp_path):
    for number in range(3):
        for side, ending in (("new", "png"), ("old", "jpg")):
            save(tmp_path / "t" / side / f"{number:04}.{ending}", number, noise=5)
    settings = {"retrieval.set": "amstertime", "retrieval.path": str(tmp_path / "t")}
    config = ask(weights, ("retrieval",), **settings, **{"retrieval.scales": (1.0, 0.5)})
    evaluate(config, str(tmp_path / "out"))
    manifests = (tmp_path / "out/features").glob("amstertime-new-*/*/manifest.json")
    sizes = {tuple(json.loads(m.read_text())["settings"]["fit"]["size"]) for m in manifests}
    assert sizes == {(16,), (8,)}


def test_met_votes_for_the_nearest_exhibit(weights, tmp_path):
    lists = {"MET_database": [], "valset": [], "testset": []}
    for exhibit in (7, 21, 90000):
        for name, split, count in (
            ("MET_database", "MET", 2),
            ("valset", "v", 1),
            ("testset", "t", 1),
        ):
            for number in range(count):
                path = f"{split}/{exhibit}/{number}.jpg"
                save(tmp_path / "images" / path, (7, 21, 90000).index(exhibit), noise=5)
                key = "id" if name == "MET_database" else "MET_id"
                lists[name].append({key: exhibit, "path": path})
    (tmp_path / "ground_truth").mkdir()
    for name, entries in lists.items():
        (tmp_path / "ground_truth" / f"{name}.json").write_text(json.dumps(entries))
    settings = {"retrieval.set": "met", "retrieval.path": str(tmp_path)}
    for extra in ({}, {"retrieval.faiss_index": "IVF2,Flat"}):
        if extra:
            pytest.importorskip("faiss")
        out = evaluate(ask(weights, ("retrieval",), **settings, **extra), str(tmp_path / "out"))
        assert values(out, "retrieval", "met") == {"GAP": 100.0, "GAP-": 100.0, "ACC": 100.0}
        assert bool(extra) == ("index" in entry(out, "retrieval", "met")["notes"])
    assert entry(out, "retrieval", "met")["notes"]["index"]["recall"] == 1


def test_amstertime_finds_its_pairs(weights, tmp_path):
    for number in range(3):
        for side, ending in (("new", "png"), ("old", "jpg")):
            save(tmp_path / "t" / side / f"{number:04}.{ending}", number, noise=5)
    settings = {"retrieval.set": "amstertime", "retrieval.path": str(tmp_path / "t")}
    out = evaluate(ask(weights, ("retrieval",), **settings), str(tmp_path / "out"))
    assert values(out, "retrieval", "amstertime") == {"mAP": 100.0}


def test_videos_by_the_mean_of_their_frames(weights, tmp_path):
    av = pytest.importorskip("av")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    classes = ("Archery", "Biking", "Diving")
    (lists / "classInd.txt").write_text("".join(f"{i + 1} {c}\n" for i, c in enumerate(classes)))
    rows = {"train": [], "test": []}
    for label, name in enumerate(classes):
        for number in range(6):
            file = f"{name}/v_{name}_{number}.avi"
            path = tmp_path / "UCF-101" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mpeg4", rate=25)
                stream.width = stream.height = 32
                for _ in range(9):
                    colour = np.eye(3)[label] * 90 + 60 + RNG.integers(-30, 30, 3)
                    image = np.full((32, 32, 3), colour, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(stream.encode())
            split = "test" if number > 3 else "train"
            rows[split].append(file + (f" {label + 1}" if split == "train" else ""))
    for split, lines in rows.items():
        (lists / f"{split}list01.txt").write_text("\n".join(lines))
    settings = {"video.set": "ucf101", "video.path": str(tmp_path)}
    out = evaluate(ask(weights, ("video",), **settings), str(tmp_path / "out"))
    found = entry(out, "video", "ucf101")
    assert found["metrics"]["top-1"]["value"] == 100.0 and found["metrics"]["top-1"]["n"] == 6
    assert found["metrics"]["top-1"]["chosen_on"] == "test"
    assert found["notes"]["videos"] == {"train": 12, "test": 6}


def test_videos_without_a_classifier_to_train_are_refused(weights, tmp_path):
    settings = {"video.set": "ucf101", "video.path": str(tmp_path), "linear.blocks": ()}
    with pytest.raises(ConfigError, match=r"config\.linear\.blocks is \(\)"):
        evaluate(ask(weights, ("video",), **settings), str(tmp_path / "out"))


@pytest.mark.parametrize("rank", [0, 2])
def test_fine_tuned_weights_are_judged_and_kept(weights, imagenet, tmp_path, rank):
    settings = {
        "data.set": "imagenet",
        "data.path": str(imagenet),
        "finetune.iterations": 30,
        "finetune.warmup_iterations": 3,
        "finetune.batch_size": 16,
        "finetune.group_size": 8,
        "finetune.lr": 3e-3,
        "finetune.ema": 0.9,
        "finetune.mixup": 0.0,
        "finetune.cutmix": 0.0,
        "finetune.lora_rank": rank,
    }
    out = evaluate(ask(weights, ("finetune",), **settings), str(tmp_path))
    assert values(out, "finetune")["top-1"] > 60
    before, after = load(weights), load(tmp_path / "finetune" / "imagenet" / "weights")
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(before.params),
        jax.tree.leaves(after.params),
        strict=True,
    )
    moved = {path_name(path): float(np.abs(old - new).max()) for (path, old), new in pairs}
    assert moved["blocks/attn/qkv/kernel"] > 1e-4
    assert (moved["cls_token"] == 0) == bool(rank)
    config = ask(tmp_path / "finetune" / "imagenet" / "weights", ("knn",))
    config.data.set, config.data.path = "imagenet", str(imagenet)
    assert values(evaluate(config, str(tmp_path / "knn")), "knn")


def test_fine_tuning_says_at_once_what_does_not_fit(weights, imagenet, tmp_path):
    data = {"data.set": "imagenet", "data.path": str(imagenet)}
    wrong = {"finetune.head": str(tmp_path / "head.safetensors")}
    with pytest.raises(UserError, match="there is no head"):
        evaluate(ask(weights, ("knn", "finetune"), **data, **wrong), str(tmp_path / "out"))
    wrong = {"finetune.group_size": 48}
    with pytest.raises(EvaluationError, match="no multiple of group_size 48"):
        evaluate(ask(weights, ("knn", "finetune"), **data, **wrong), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_all_transfer_sets_of_a_folder(weights, tmp_path):
    """DTD's official lists, twice: once as itself, once more where another set is missing."""
    root = tmp_path / "sets" / "dtd"
    for split, count in (("train", 4), ("val", 3), ("test", 3)):
        names = []
        for label, name in enumerate(("banded", "dotted", "woven")):
            for number in range(count):
                file = f"{name}/{split}_{number}.jpg"
                save(root / "images" / file, label)
                names.append(file)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{split}1.txt").write_text("\n".join(names))
    settings = {"transfer.path": str(tmp_path / "sets"), "logreg.count": 4}
    out = evaluate(ask(weights, ("transfer",), **settings), str(tmp_path / "out"))
    found = values(out, "transfer", "dtd")
    assert set(out["results"]["transfer"]) == {"dtd"} and found["top-1"] > 60
    assert entry(out, "transfer", "dtd")["notes"]["metric"] == "top-1"
    data = {"data.set": "dtd", "data.path": str(root), "logreg.count": 4}
    alone = evaluate(ask(weights, ("logreg",), **data), str(tmp_path / "alone"))
    assert values(alone, "logreg")["top-1"] == found["top-1"]
    with pytest.raises(ConfigError, match=r"transfer needs .*food101"):
        evaluate(ask(weights, ("transfer",)), str(tmp_path / "out"))
