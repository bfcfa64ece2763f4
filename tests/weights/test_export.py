"""export(): what is written is opened again, and nothing half-written stays."""

import json
import subprocess
import sys

import numpy as np
import pytest

import dinov2_jax
from dinov2_jax.weights import export as exports
from dinov2_jax.weights.export import Programs, export, huggingface_config
from dinov2_jax.weights.files import WeightsError, read_tensors
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


def test_what_transformers_cannot_describe():
    source = tiny_backbone()
    model = source.model.clone(proj_bias=False)
    with pytest.raises(WeightsError, match="biases everywhere"):
        huggingface_config(exports.dataclasses.replace(source, model=model))


RUN = """
import sys
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


def test_onnx_needs_its_extra_and_fixed_batches(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(WeightsError, match=r"pip install \"dinov2_jax\[onnx\]\""):
        export(tiny_backbone(), "onnx", tmp_path, Programs(((28, 28),), (1,)))
    with pytest.raises(WeightsError, match="unknown format 'tflite'"):
        export(tiny_backbone(), "tflite", tmp_path)
    assert not list(tmp_path.iterdir())
