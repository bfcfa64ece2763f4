"""export(): what is written is opened again, and nothing half-written stays."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import dinov2_jax
from dinov2_jax.config.files import load_config
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.heads.linear import from_stored
from dinov2_jax.weights import export as exports
from dinov2_jax.weights.export import Programs, export, run
from dinov2_jax.weights.files import WeightsError, read_tensors
from dinov2_jax.weights.huggingface import model_config
from tests.weights.tiny import features, noise, reference_tensors, tiny_backbone


@pytest.mark.parametrize("form", ["reference", "huggingface", "timm", "bundle"])
def test_round_trip(form, tmp_path):
    source = tiny_backbone(registers=4, ffn="swiglu")
    folder = export(source, form, tmp_path)
    report = json.loads((folder / "report.json").read_text())
    assert report["greatest_difference"] <= 1e-5
    assert any(name.startswith("features at") for name in report["compared"])
    path = folder
    if form in ("reference", "timm"):
        (path,) = folder.glob("*.safetensors")
    again = dinov2_jax.load(folder / "bundle" if form == "bundle" else path, heads=3)
    images = noise(2, 14, 35, 3)
    for name, value in features(source, images).items():
        np.testing.assert_allclose(features(again, images)[name], value, rtol=0, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [form]
    with pytest.raises(WeightsError, match="exists already"):
        export(source, form, tmp_path)


OWN = Preprocessing(40, 28, (0.8, 0.7, 0.6), (0.3, 0.2, 0.1))


def exported_path(folder, form):
    if form == "bundle":
        return folder / "bundle"
    return folder if form == "huggingface" else next(folder.glob("*.safetensors"), None)


@pytest.mark.parametrize("form", ["reference", "pth", "huggingface", "timm", "bundle"])
def test_preprocessing_travels(form, tmp_path):
    """Features of pictures that are normalised in another way are other features."""
    if form == "pth":
        pytest.importorskip("torch")
    source = exports.dataclasses.replace(tiny_backbone(), preprocessing=OWN)
    folder = export(source, form, tmp_path)
    path = exported_path(folder, form) or folder / "backbone.pth"
    assert dinov2_jax.load(path, heads=3).preprocessing == OWN


def test_an_export_that_loses_the_preprocessing_is_refused(tmp_path, monkeypatch):
    source = exports.dataclasses.replace(tiny_backbone(), preprocessing=OWN)
    monkeypatch.setattr(exports, "_exported", lambda _: {})
    with pytest.raises(WeightsError, match=r"keeps .*resize_px=256.* nothing was written"):
        export(source, "reference", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def with_heads(registers=0):
    """A backbone with the head that transformers can hold, and one that it cannot."""
    fits = {"blocks": 1, "avgpool": True, "class_names": ["cat", "dog", "owl"], "identity": "x"}
    other = {"blocks": 2, "avgpool": False, "class_names": [], "identity": ""}
    heads = {
        "classifier": {"weight": noise(3, 48), "bias": noise(3), "metadata": fits},
        "of two blocks": {"weight": noise(4, 48), "bias": noise(4), "metadata": other},
        "dino_head": {"mlp_0": {"kernel": noise(24, 8)}},
    }
    source = exports.dataclasses.replace(tiny_backbone(registers), heads=heads)
    return exports.dataclasses.replace(source, preprocessing=OWN)


@pytest.mark.parametrize("form", ["reference", "pth", "bundle"])
def test_linear_heads_travel(form, tmp_path, capsys):
    if form == "pth":
        pytest.importorskip("torch")
    source = with_heads()
    folder = export(source, form, tmp_path)
    path = exported_path(folder, form) or folder / "backbone.pth"
    again = dinov2_jax.load(path, heads=3).heads
    assert again.keys() == {"classifier", "of two blocks"}
    for name, head in again.items():
        np.testing.assert_array_equal(head["weight"], source.heads[name]["weight"])
        assert head["metadata"] == source.heads[name]["metadata"]
    report = json.loads((folder / "report.json").read_text())
    assert report["notes"] == [] and report["compared"]["head of two blocks"] == 0


@pytest.mark.parametrize("registers", [0, 4])
def test_huggingface_keeps_the_classifier_and_its_class_names(registers, tmp_path):
    source = with_heads(registers)
    folder = export(source, "huggingface", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"][0].endswith("ForImageClassification")
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}
    assert config["label2id"]["owl"] == 2 and config["num_labels"] == 3
    report = json.loads((folder / "report.json").read_text())
    assert report["compared"]["head classifier"] == 0
    (note,) = report["notes"]
    assert "'of two blocks' reads 2 blocks with avgpool=False" in note and "bundle" in note
    again = dinov2_jax.load(folder).heads
    assert again.keys() == {"classifier"}
    assert again["classifier"]["metadata"]["class_names"] == ["cat", "dog", "owl"]
    np.testing.assert_array_equal(again["classifier"]["weight"], noise(3, 48))
    timm = json.loads((export(source, "timm", tmp_path) / "report.json").read_text())
    assert len(timm["notes"]) == 2


@pytest.mark.parity
@pytest.mark.parametrize("registers", [0, 4])
def test_transformers_opens_the_classifier(registers, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = with_heads(registers)
    folder = export(source, "huggingface", tmp_path)
    theirs, told = transformers.AutoModelForImageClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    images = noise(2, 28, 28, 3)
    with torch.no_grad():
        got = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    found = features(source, images)
    columns = [found["cls"], found["patches"].mean(axis=1)]
    want = from_stored(source.heads["classifier"]).logits(columns)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_reference_layout_is_bit_exact(tmp_path):
    source = tiny_backbone()
    folder = export(source, "reference", tmp_path)
    stored = read_tensors(folder / "backbone.safetensors").tensors
    want = reference_tensors(source)
    assert stored.keys() == want.keys()
    assert all(np.array_equal(stored[name], x) for name, x in want.items())


def test_an_export_that_differs_is_refused(tmp_path, monkeypatch):
    source = tiny_backbone()
    real = exports.reference_tensors

    def wrong(backbone):
        tensors = real(backbone)
        return tensors | {"norm.bias": tensors["norm.bias"] + 1e-3}

    monkeypatch.setattr(exports, "reference_tensors", wrong)
    with pytest.raises(WeightsError, match=r"differs from its source by 0\.00?1.* nothing was"):
        export(source, "reference", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("form", ["reference", "huggingface", "timm"])
def test_tensors_are_equal_bit_for_bit(form, tmp_path, monkeypatch):
    source = tiny_backbone()
    real = exports.reference_tensors

    def nearly(backbone):
        tensors = real(backbone)
        return tensors | {"norm.bias": np.nextafter(tensors["norm.bias"], np.float32(9))}

    monkeypatch.setattr(exports, "reference_tensors", nearly)
    with pytest.raises(WeightsError, match=r"norm/bias, which must be equal bit for bit"):
        export(source, form, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_what_transformers_cannot_describe():
    source = tiny_backbone()
    model = source.model.clone(proj_bias=False)
    with pytest.raises(WeightsError, match="biases everywhere"):
        model_config(exports.dataclasses.replace(source, model=model))


RUN = """
import sys
from types import SimpleNamespace
import jax, jax.numpy as jnp
import numpy as np
weights = dict(jnp.load("weights.npz"))
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.savez("out.npz", **program.call(weights, jnp.asarray(np.load("images.npy"))))
assert not any(name.startswith(("dinov2_jax", "flax", "orbax")) for name in sys.modules)
"""


@pytest.mark.parametrize("baked", [True, False])
def test_stablehlo_runs_with_nothing_but_jax(baked, tmp_path):
    source = tiny_backbone(registers=0)
    programs = Programs(((28, 28), (14, 35)), (0, 1), bake_positions=baked)
    folder = export(source, "stablehlo", tmp_path, programs)
    held = {p.name for p in folder.glob("*.bin")}
    assert held == {"28x28.bin", "28x28_b1.bin", "14x35.bin", "14x35_b1.bin"}
    for name, shape in (("14x35.bin", (3, 14, 35, 3)), ("28x28_b1.bin", (1, 28, 28, 3))):
        images = noise(*shape)
        np.save(folder / "images.npy", images)
        command = [sys.executable, "-c", RUN, name]
        subprocess.run(command, cwd=folder, check=True, timeout=120)
        got, want = np.load(folder / "out.npz"), features(source, images)
        np.testing.assert_allclose(got["cls"], want["cls"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(got["patches"], want["patches"], rtol=0, atol=1e-5)


def with_greatest_feature(value, registers=0):
    """A backbone whose features of noise reach `value`, as those of released models reach 8."""
    source = tiny_backbone(registers)
    found = features(source, noise(2, 28, 28, 3))
    factor = value / max(np.abs(x).max() for x in found.values() if x.size)
    norm = {name: (x * factor).astype(np.float32) for name, x in source.params["norm"].items()}
    return exports.dataclasses.replace(source, params={**source.params, "norm": norm})


@pytest.mark.parametrize("greatest", [8, 8000])
def test_tolerances_grow_with_the_features(greatest, tmp_path, monkeypatch):
    """A program may round as much as float32 does, however large its features are."""
    real = exports.stablehlo.flat_weights

    def rounded(backbone):
        return {k: x * np.float32(1 + 1e-6 * ("norm/" in k)) for k, x in real(backbone).items()}

    monkeypatch.setattr(exports.stablehlo, "flat_weights", rounded)
    programs = Programs(((28, 28), (14, 35)), (1,))
    folder = export(with_greatest_feature(greatest), "stablehlo", tmp_path, programs)
    assert 0 < json.loads((folder / "report.json").read_text())["greatest_difference"] < 1e-5


RUN_ONNX = """
import runpy, sys, numpy as np, onnxruntime
found = runpy.run_path("example.py")["features"]
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print([x.name for x in session.get_inputs()], [x.name for x in session.get_outputs()])
"""


@pytest.mark.parametrize(("greatest", "registers"), [(8, 4), (8000, 0)])
def test_onnx_has_names_an_example_and_nothing_to_say(greatest, registers, tmp_path, capfd, caplog):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    source = with_greatest_feature(greatest, registers)
    with caplog.at_level("WARNING"):
        folder = export(source, "onnx", tmp_path, Programs(((28, 28), (14, 35)), (1,)))
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    line = [sys.executable, "-c", RUN_ONNX, "28x28_b1.onnx"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120)
    outputs = ["cls", "registers", "patches"] if registers else ["cls", "patches"]
    assert done.stdout.splitlines()[-1] == f"['images'] {outputs}", done.stderr
    assert "(0.485, 0.456, 0.406)" in (folder / "example.py").read_text()


def test_onnx_needs_its_extra_and_fixed_batches(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(WeightsError, match=r"pip install \"dinov2_jax\[onnx\]\""):
        export(tiny_backbone(), "onnx", tmp_path, Programs(((28, 28),), (1,)))
    with pytest.raises(WeightsError, match="unknown format 'tflite'"):
        export(tiny_backbone(), "tflite", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_folder(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    config = load_config("export")
    config.checkpoint, config.format = "x", "reference"
    given = SimpleNamespace(report=[], model=SimpleNamespace(patch_size=8))
    monkeypatch.setattr(exports, "load_configured", lambda *_, **__: given)
    monkeypatch.setattr(exports, "export", fail)
    with pytest.raises(WeightsError, match=f"export to {tmp_path}: No space left.*make room"):
        run(config, str(tmp_path))
