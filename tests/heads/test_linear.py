"""LinearHead: released classifiers, its file, files of earlier versions, what it refuses."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.extract import extract
from dinov2_jax.heads.linear import LinearHead, from_stored, load_head
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.load import load
from tests.features.tiny import backbone
from tests.weights.tiny import noise, tiny_backbone


def columns_of(images, blocks):
    """cls of the last blocks of a backbone of four blocks, and the mean patch of the last."""
    model, rng = tiny_backbone().model.clone(depth=4), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    last = tuple(range(4 - blocks, 4))
    outputs = model.apply({"params": params}, images, intermediate=last)["blocks"]
    cls = [np.asarray(normed[:, 0]) for _, normed in outputs]
    return [*cls, np.asarray(outputs[-1][1][:, 1:].mean(1))]


def some_head(blocks=1, avgpool=False, classes=5, dim=24):
    weight, bias = noise(classes, dim * (blocks + avgpool)), noise(classes)
    names = tuple(f"class {n}" for n in range(classes))
    return LinearHead(weight, bias, blocks, avgpool, names, "these", {"name": "one", "rate": 0.1})


def same(a, b):
    assert np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias)
    assert (a.blocks, a.avgpool, a.class_names) == (b.blocks, b.avgpool, b.class_names)
    assert (a.identity, dict(a.metadata)) == (b.identity, dict(b.metadata))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize(("name", "blocks"), [("linear", 1), ("linear4", 4)])
def test_released_classifiers(name, blocks, ending, tmp_path):
    """Their files hold weight [K, (blocks + 1) D] and bias [K], and nothing of their input."""
    tensors = {"weight": noise(5, 24 * (blocks + 1)), "bias": noise(5)}
    path = tmp_path / f"dinov2_vits14_{name}_head.{ending}"
    if ending == "pth":
        torch = pytest.importorskip("torch")
        torch.save({key: torch.from_numpy(x) for key, x in tensors.items()}, path)
    else:
        save_file(tensors, path)
    head = load_head(path, dim=24)
    assert (head.blocks, head.avgpool, head.class_names) == (blocks, True, ())
    columns = columns_of(noise(2, 28, 28, 3), 4)
    seen = np.concatenate(columns[4 - blocks :], axis=1)
    want = seen @ tensors["weight"].T + tensors["bias"]
    np.testing.assert_allclose(head.logits(columns), want, rtol=0, atol=1e-4)
    subset = head.logits(columns, classes=[3, 0], rows=1)
    np.testing.assert_allclose(subset, want[:, [3, 0]], rtol=0, atol=1e-4)
    with pytest.raises(WeightsError, match="neither 2 nor 5 times the backbone's width of 36"):
        load_head(path, dim=36)
    with pytest.raises(WeightsError, match=r"nor 5 times a released width; .*load_head"):
        load_head(path)


@pytest.mark.parametrize(("width", "blocks"), [(768, 1), (1920, 4), (7680, 4), (2048, 1)])
def test_released_widths_tell_the_input(width, blocks, tmp_path):
    save_file({"weight": noise(3, width), "bias": noise(3)}, tmp_path / "x.safetensors")
    assert load_head(tmp_path / "x.safetensors").blocks == blocks


def test_a_saved_head_is_the_same(tmp_path):
    head = some_head(blocks=2, avgpool=True)
    head.save(tmp_path / "new" / "head.safetensors")
    same(load_head(tmp_path / "new" / "head.safetensors"), head)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["head.safetensors"]


def test_files_of_earlier_versions_open(tmp_path):
    """The probe wrote weight and bias with its rate; fine-tuning wrote kernel and bias."""
    about = {
        "name": "classifier_1_blocks_avgpool_True_lr_0_1",
        "blocks": 1,
        "avgpool": True,
        "rate": 0.1,
        "grid_blocks": 4,
        "accuracy": {"classifier_1_blocks_avgpool_True_lr_0_1": 90.0},
        "identity": "abc",
    }
    tensors = {"weight": noise(5, 48), "bias": noise(5)}
    save_file(tensors, tmp_path / "probe.safetensors", {"linear_head": json.dumps(about)})
    head = load_head(tmp_path / "probe.safetensors")
    assert (head.blocks, head.avgpool, head.identity) == (1, True, "abc")
    assert head.name == about["name"] and head.metadata["accuracy"] == about["accuracy"]
    columns = columns_of(noise(2, 28, 28, 3), 4)
    want = np.concatenate(columns[3:], axis=1) @ tensors["weight"].T + tensors["bias"]
    np.testing.assert_allclose(head.logits(columns), want, rtol=0, atol=1e-4)
    tensors = {"kernel": noise(24, 5), "bias": noise(5)}
    save_file(tensors, tmp_path / "tuned.safetensors", {"avgpool": "False"})
    head = load_head(tmp_path / "tuned.safetensors")
    assert (head.blocks, head.avgpool) == (1, False)
    np.testing.assert_array_equal(head.weight, tensors["kernel"].T)


def test_a_head_travels_in_a_bundle(tmp_path):
    source, head = tiny_backbone(), some_head(avgpool=True)
    given = source.model, source.params, source.preprocessing, "here"
    write_bundle(tmp_path / "b", *given, {"classifier": head.as_stored()})
    same(from_stored(load(tmp_path / "b").heads["classifier"]), head)
    same(load_head(tmp_path / "b"), head)
    write_bundle(tmp_path / "without", *given)
    assert load(tmp_path / "without").heads == {}


def test_columns_beyond_its_own_are_passed_over():
    columns, head = [noise(3, 24) + i for i in range(5)], some_head()
    want = columns[3] @ head.weight.T + head.bias
    np.testing.assert_allclose(head.logits(columns), want, atol=1e-4)  # the mean patch is last
    np.testing.assert_allclose(head.logits(columns[3:4]), want, atol=1e-4)  # or just its own
    pair = some_head(blocks=2)
    want = np.concatenate(columns[2:4], axis=1) @ pair.weight.T + pair.bias
    np.testing.assert_allclose(pair.logits(columns), want, atol=1e-4)
    np.testing.assert_allclose(pair.logits(columns[2:4]), want, atol=1e-4)


@pytest.mark.parametrize(("blocks", "avgpool"), [(1, False), (1, True), (2, True)])
def test_predicts_classes_of_pictures(blocks, avgpool):
    weights, rng = backbone(), np.random.default_rng(3)
    pictures = list(rng.integers(0, 256, (4, 20, 24, 3), dtype=np.uint8))
    head = some_head(blocks, avgpool)
    found = head.predict(weights, pictures, batch_size=2)
    given = extract(weights, pictures, features=("cls", "mean_patch"), layers=(-2, -1))
    columns = [given[f"cls_block_{b}"] for b in (1, 2)] + [given["mean_patch_block_2"]]
    logits = head.logits(columns)
    np.testing.assert_array_equal(found.labels, logits.argmax(axis=1))
    assert found.names == tuple(head.class_names[n] for n in found.labels)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found.probabilities, exp / exp.sum(1, keepdims=True), atol=1e-5)


def test_an_unreadable_picture_has_no_class(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths = [tmp_path / "bad.png", tmp_path / "good.png"]
    found = some_head().predict(backbone(), paths, on_error="nan")
    assert found.labels[0] == -1 and found.names[0] == "" and found.names[1].startswith("class")
    assert np.isnan(found.probabilities[0]).all() and np.isfinite(found.probabilities[1]).all()


def test_what_does_not_fit_is_one_sentence(tmp_path):
    with pytest.raises(EvaluationError, match=r"1 columns of features do not fit .* 48 values"):
        some_head(avgpool=True).logits([noise(3, 24)])
    with pytest.raises(EvaluationError, match=r"2 columns of features do not fit .* 24 values"):
        some_head().logits([noise(3, 36), noise(3, 36)])
    with pytest.raises(EvaluationError, match="4 class names for 5 classes"):
        LinearHead(noise(5, 24), noise(5), 1, False, tuple("abcd"))
    with pytest.raises(EvaluationError, match=r"weight \(5, 24\) and bias \(4,\)"):
        LinearHead(noise(5, 24), noise(4), 1, False)
    save_file({"kernel": noise(5), "bias": noise(5)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="no linear head: it holds bias, kernel"):
        load_head(tmp_path / "x.safetensors", dim=24)
    with pytest.raises(WeightsError, match="there is no head"):
        load_head(tmp_path / "nothing.safetensors")
