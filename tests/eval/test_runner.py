"""Task "eval": everything but the checkpoint's path may come from the checkpoint."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import default
from configs.eval import default as eval_config
from dinov2_jax.config.files import ConfigError, to_dict
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.eval import runner
from dinov2_jax.eval.page import write_page
from dinov2_jax.eval.runner import evaluate
from dinov2_jax.eval.task import Metric, Task
from dinov2_jax.features import store
from dinov2_jax.heads.knn import knn_accuracy
from dinov2_jax.models.vit import from_config
from dinov2_jax.run.checkpoint import Checkpoints
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.load import load
from tests.eval.found import entry, values

pytestmark = pytest.mark.usefixtures("one_device")

STORED = {
    "model.variant": "vit_tiny",
    "model.dim": 24,
    "model.depth": 2,
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


def write_pictures(folder, seed=0, count=60):
    """Three classes whose colours overlap, 16 px."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        home = folder / "abc"[number % 3]
        home.mkdir(parents=True, exist_ok=True)
        colour = 15 * (number % 3) + rng.integers(0, 150, (4, 4, 3))
        Image.fromarray(colour.astype(np.uint8)).resize((16, 16)).save(home / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with one checkpoint of a random teacher, and its configuration."""
    root = tmp_path_factory.mktemp("eval")
    config = default.get_config()
    pictures = write_pictures(root / "pictures")
    config.update_from_flattened_dict(STORED | {"data.path": str(pictures)})
    model = from_config(config.model, 16)
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    checkpoints = Checkpoints(root / "run", keep_last=1, keep_every_steps=0)
    state = {"teacher": {"backbone": params}}
    checkpoints.save(7, state, loader={}, config=to_dict(config))
    checkpoints.close()
    return root / "run", config, model, params


def ask(checkpoint, **changes):
    config = eval_config.get_config()
    config.update_from_flattened_dict({"checkpoint": str(checkpoint), "knn.ks": (1, 5)} | changes)
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
    report = evaluate(ask(run[0]))
    bank, query = direct_features(run, "train"), direct_features(run, "test")
    expected = knn_accuracy(*bank, *query, ks=(1, 5))
    names = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
    assert values(report, "knn") == {
        f"{names[name]}, k={k}": value for k in (1, 5) for name, value in expected[k].items()
    }
    assert expected[5]["top1"] not in (0, 100)
    found = entry(report, "knn", "pictures")
    metric = found["metrics"]["top-1, k=5"]
    assert metric["unit"] == "%" and metric["higher_is_better"] and metric["data"] == "pictures"
    assert metric["n"] == len(query[1]) and metric["published"] is None
    assert found["settings"]["splits"]["train"]["pictures"] == len(bank[1])
    assert report["about"]["preprocessing"]["image_px"] == 16
    said = capsys.readouterr().out
    assert "top-1, k=5" in said and "results.html" in said
    written = json.loads((run[0] / "eval" / "7" / "pictures" / "results.json").read_text())
    assert values(written, "knn") == values(report, "knn")


def test_a_killed_evaluation_keeps_features_and_finished_protocols(run, tmp_path, monkeypatch):
    """The second protocol fails; the next start computes nothing but that one."""
    killed = ask(run[0], protocols=("knn", "few_shot"))
    calls = []
    real = runner._run

    def stop_at_second(planned, *rest):
        calls.append(planned.protocol)
        if planned.protocol == "few_shot":
            raise KeyboardInterrupt
        real(planned, *rest)

    monkeypatch.setattr(runner, "_run", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed, str(tmp_path))
    monkeypatch.setattr(
        runner,
        "_run",
        lambda planned, *rest: (calls.append(planned.protocol), real(planned, *rest)),
    )
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")}
    whole = evaluate(killed, str(tmp_path))
    assert calls == ["knn", "few_shot", "few_shot"] and set(whole["results"]) == set(calls)
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")} != {}
    evaluate(ask(run[0], **{"knn.ks": (1, 2)}), str(tmp_path))  # another setting runs again
    assert calls[3:] == ["knn"]


def test_weights_that_are_no_run_need_data_and_a_place(run, tmp_path):
    backbone = load(run[0])
    write_bundle(tmp_path / "b", backbone.model, backbone.params, backbone.preprocessing, "test")
    with pytest.raises(ConfigError, match=r"add --workdir"):
        evaluate(ask(tmp_path / "b"))
    with pytest.raises(ConfigError, match=r"--config\.data\.path"):
        evaluate(ask(tmp_path / "b"), str(tmp_path / "out"))
    path = {"data.path": run[1].data.path}
    report = evaluate(ask(tmp_path / "b", **path), str(tmp_path / "out"))
    same = evaluate(ask(run[0]), str(tmp_path / "run"))
    assert values(report, "knn") == values(same, "knn")


def test_batch_size_and_loader_processes_change_nothing(run, tmp_path):
    whole = evaluate(ask(run[0]), str(tmp_path / "a"))
    parts = evaluate(ask(run[0], batch_size=7, **{"data.workers": 1}), str(tmp_path / "b"))
    assert values(whole, "knn") == values(parts, "knn")


def test_label_files_stand_for_folders(run, tmp_path):
    """The same pictures without class folders, in a list, named by class or by number."""
    _, config, *_ = run
    flat = {}
    for split in ("train", "test"):
        source = open_source("folder", config.data.path, split=split, labels="folders")
        names = [f"{config.data.path}/{source.name(i)}" for i in range(len(source))]
        (tmp_path / f"{split}.txt").write_text("\n".join(names))
        classes = [source.class_names[label] for label in source.labels]
        (tmp_path / f"{split}_labels.txt").write_text("\n".join(classes) + "\n")
        flat[split] = names
    folder = tmp_path / "all"
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    for split, home in (("train", "train"), ("test", "val")):
        for number, name in enumerate(flat[split]):
            (folder / home / f"{number:03}.png").symlink_to(name)
    settings = {
        "data.path": str(folder),
        "data.train_labels": str(tmp_path / "train_labels.txt"),
        "data.test_labels": str(tmp_path / "test_labels.txt"),
    }
    found = evaluate(ask(run[0], **settings), str(tmp_path / "out"))
    lists = {f"data.{s}_path": str(tmp_path / f"{s}.txt") for s in ("train", "test")}
    labels = {f"data.{s}_labels": str(tmp_path / f"{s}_labels.txt") for s in ("train", "test")}
    listed = evaluate(ask(run[0], **lists, **labels), str(tmp_path / "listed"))
    assert values(listed, "knn") == values(found, "knn")
    same_twice = {"data.path": str(tmp_path / "train.txt"), **labels}
    same_twice["data.test_labels"] = same_twice["data.train_labels"]
    with pytest.raises(SourceError, match=r"no folder for the split .test.*data\.test_path="):
        evaluate(ask(run[0], **same_twice), str(tmp_path / "twice"))
    same = evaluate(ask(run[0]), str(tmp_path / "run"))
    assert values(found, "knn") == values(same, "knn")
    (tmp_path / "test_labels.txt").write_text("a\n" * 3)
    with pytest.raises(SourceError, match=r"has 3 lines for \d+ pictures"):
        evaluate(ask(run[0], **settings), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    lines = ["a"] * (len(flat["test"]) - 1) + ["z"]
    (tmp_path / "test_labels.txt").write_text("\n".join(lines))
    with pytest.raises(SourceError, match=r"class 'z', which the training set does not have"):
        evaluate(ask(run[0], **settings), str(tmp_path / "other"))


def test_wrong_input_is_one_sentence_before_any_extraction(run, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--config\.checkpoint="):
        evaluate(eval_config.get_config())
    with pytest.raises(ConfigError, match=r"has no labels.*--config\.data\.labels=folders"):
        evaluate(ask(run[0], **{"data.labels": "none"}), out)
    with pytest.raises(ConfigError, match=r"'kn'; did you mean 'knn'"):
        evaluate(ask(run[0], protocols=("kn",)), out)
    with pytest.raises(ConfigError, match=r"image_size 20 px .* --config\.image_size=16"):
        evaluate(ask(run[0], image_size=20), out)
    assert not (tmp_path / "out").exists()


def test_other_pictures_of_the_same_names_have_features_of_their_own(run, tmp_path):
    found = []
    for seed in (1, 2):
        for split in ("train", "val"):
            write_pictures(tmp_path / str(seed) / split, seed if split == "val" else 0)
        config = ask(run[0], **{"data.path": str(tmp_path / str(seed))})
        config.feature_cache = str(tmp_path / "features")
        found.append(values(evaluate(config, str(tmp_path / f"out{seed}")), "knn"))
    assert found[0] != found[1]
    assert len(list((tmp_path / "features").glob("train-*"))) == 1
    assert len(list((tmp_path / "features").glob("test-*"))) == 2


def test_a_test_set_with_some_of_the_classes_keeps_their_numbers(run, tmp_path):
    for split, seed in (("train", 1), ("val", 2)):
        write_pictures(tmp_path / "p" / split, seed)
    data = {"data.path": str(tmp_path / "p"), "data.labels": "folders"}
    whole = values(evaluate(ask(run[0], **data), str(tmp_path / "a")), "knn")["top-1, k=1"]
    for picture in (tmp_path / "p" / "val" / "a").iterdir():
        picture.unlink()
    (tmp_path / "p" / "val" / "a").rmdir()
    part = values(evaluate(ask(run[0], **data), str(tmp_path / "b")), "knn")["top-1, k=1"]
    for picture in [p for c in "bc" for p in (tmp_path / "p" / "val" / c).iterdir()]:
        picture.unlink()
    for c in "bc":
        (tmp_path / "p" / "val" / c).rmdir()
    write_pictures(tmp_path / "q", seed=2)
    (tmp_path / "q" / "a").rename(tmp_path / "p" / "val" / "a")
    rest = values(evaluate(ask(run[0], **data), str(tmp_path / "c")), "knn")["top-1, k=1"]
    assert whole == pytest.approx((2 * part + rest) / 3)


def test_a_class_that_train_lacks_and_unreadable_pictures(run, tmp_path):
    out = str(tmp_path / "out")
    for split in ("train", "val"):
        write_pictures(tmp_path / "p" / split, count=12)
    (tmp_path / "p" / "val" / "a" / "0.png").write_bytes(b"<html>")
    data = {"data.path": str(tmp_path / "p")}
    with pytest.raises(SourceError, match=r"1 of 12 pictures of test .*a/0.png.*max_bad=1"):
        evaluate(ask(run[0], **data), out)
    with pytest.raises(SourceError, match=r"split test: 1 of 3 classes, such as 'd', are not"):
        (tmp_path / "p" / "val" / "a").rename(tmp_path / "p" / "val" / "d")
        evaluate(ask(run[0], **data), out)
    (tmp_path / "p" / "val" / "d").rename(tmp_path / "p" / "val" / "a")
    assert not (tmp_path / "out").exists()
    found = evaluate(ask(run[0], **data, **{"data.max_bad": 1}), out)
    assert entry(found, "knn")["settings"]["splits"]["test"]["pictures"] == 12
    truncated = (tmp_path / "p" / "val" / "a" / "3.png").read_bytes()[:60]
    (tmp_path / "p" / "val" / "a" / "0.png").unlink()
    (tmp_path / "p" / "val" / "a" / "3.png").write_bytes(truncated)  # its header is whole
    with pytest.raises(SourceError, match=r"1 of 11 pictures of test cannot be decoded.*3\.png"):
        evaluate(ask(run[0], **data), str(tmp_path / "again"))
    write_pictures(tmp_path / "r", count=12)
    shutil.copy(tmp_path / "r" / "a" / "3.png", tmp_path / "p" / "val" / "a" / "3.png")
    assert values(evaluate(ask(run[0], **data), str(tmp_path / "again")), "knn")


def test_a_square_larger_than_the_picture_is_no_black_frame(run, tmp_path):
    report = evaluate(ask(run[0], image_size=32), str(tmp_path / "out"))
    assert report["about"]["preprocessing"]["resize_px"] == 32
    with pytest.raises(ConfigError, match=r"resize_size 16 px .* --config\.resize_size=32"):
        evaluate(ask(run[0], image_size=32, resize_size=16), str(tmp_path / "other"))


def test_results_of_other_weights_are_not_overwritten(run, tmp_path):
    evaluate(ask(run[0]), str(tmp_path))
    backbone = load(run[0])
    other = jax.tree.map(lambda x: x + 1, backbone.params)
    write_bundle(tmp_path / "b", backbone.model, other, backbone.preprocessing, "test")
    with pytest.raises(
        ConfigError, match=r"results of other weights \(weights\.fingerprint.*--workdir"
    ):
        evaluate(ask(tmp_path / "b", **{"data.path": run[1].data.path}), str(tmp_path))


def test_leave_one_out_asks_the_bank_about_itself(run, tmp_path):
    found = evaluate(ask(run[0], **{"knn.leave_one_out": True}), str(tmp_path))
    features, labels = direct_features(run, "train")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    right = 100 * np.mean(labels[similarity.argmax(axis=1)] == labels)
    assert values(found, "knn")["top-1, k=1"] == pytest.approx(right)
    assert entry(found, "knn")["notes"]["queries"] == "train, each without itself"


def test_weights_are_hashed_once_for_several_evaluations(run, tmp_path, monkeypatch):
    root, _, _, _ = run
    backbone, hashed = load(root), []
    fields = store.architecture_fields
    monkeypatch.setattr(store, "architecture_fields", lambda m: (hashed.append(m), fields(m))[1])
    for ks in ((1,), (2,)):
        evaluate(ask(root, **{"knn.ks": ks}), str(tmp_path / "out"), backbone)
    assert len(hashed) == 1


def test_pictures_are_files_and_stand_on_the_page(run, tmp_path, monkeypatch):
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    plates = [
        Figure("Masks <K>", "What they show.", f"mask_{i}.png", image + i, f"picture {i}")
        for i in range(2)
    ]

    def findings(work):
        yield from [Metric("miou", 50.0), *plates]

    def opened(context):
        return [Task("a set/of 2", (), {}, findings)]

    monkeypatch.setitem(runner.PROTOCOLS, "knn", opened)
    found = evaluate(ask(run[0]), str(tmp_path))
    stored = entry(found, "knn")["pictures"]
    assert [p["caption"] for p in stored] == ["picture 0", "picture 1"]
    for plate, about in zip(plates, stored, strict=True):
        with Image.open(tmp_path / about["file"]) as png:
            np.testing.assert_array_equal(np.asarray(png), plate.image)
        assert about["file"] == f"knn/a_set_of_2/{plate.file}" and about["width_px"] == 6
    page = (tmp_path / "results.html").read_text()
    assert page.count("Masks &lt;K&gt; (knn, a set/of 2)") == 1 and page.count("<img") == 2
    assert json.loads((tmp_path / "results.json").read_text())["results"] == found["results"]
    (tmp_path / stored[0]["file"]).unlink()
    write_page(tmp_path / "results.html", found)
    assert (tmp_path / "results.html").read_text().count("<img") == 1
