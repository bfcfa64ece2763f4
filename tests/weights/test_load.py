"""load(): strict, from files as they are found in the world, the broken ones included."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import dinov2_jax
from dinov2_jax.main import main
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.layouts import from_reference_names
from tests.weights.tiny import features, noise, reference_tensors, tiny_backbone


def saved(tensors: dict[str, np.ndarray], folder: Path, name: str = "x.safetensors") -> Path:
    save_file(tensors, folder / name)
    return folder / name


def same(a: dinov2_jax.weights.load.Backbone, b: dinov2_jax.weights.load.Backbone) -> bool:
    equal = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a.params, b.params)
    return all(jax.tree.leaves(equal))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("layout", ["reference", "huggingface"])
def test_every_tensor_arrives(layout, ffn, registers, tmp_path):
    source = tiny_backbone(registers, ffn)
    tensors = from_reference_names(reference_tensors(source), layout)
    loaded = dinov2_jax.load(saved(tensors, tmp_path), heads=3)
    assert same(loaded, source)
    assert loaded.layout == layout
    assert loaded.model == source.model
    count = len(jax.tree.leaves(source.params))
    assert loaded.report[0].startswith(f"{count} of {count} tensors")


def test_model_and_params_come_apart(tmp_path):
    source = tiny_backbone()
    model, params = dinov2_jax.load(saved(reference_tensors(source), tmp_path), heads=3)
    images = noise(1, 42, 14, 3)
    out = model.apply({"params": params}, images)
    np.testing.assert_allclose(out["cls"], features(source, images)["cls"], rtol=0, atol=1e-6)


def test_timm_says_what_it_lacks(tmp_path):
    source = tiny_backbone(registers=4)
    tensors = from_reference_names(reference_tensors(source), "timm")
    assert tensors.keys().isdisjoint({"mask_token", "register_tokens"})
    loaded = dinov2_jax.load(saved(tensors, tmp_path), heads=3)
    assert loaded.layout == "timm"
    assert "no mask_token" in loaded.report[1]
    images = noise(2, 28, 28, 3)
    got, want = features(loaded, images), features(source, images)
    np.testing.assert_allclose(got["patches"], want["patches"], rtol=0, atol=1e-5)
    # and backwards to the very file
    again = from_reference_names(reference_tensors(loaded), "timm")
    assert all(np.array_equal(again[name], x) for name, x in tensors.items())


def test_directory_of_several_files(tmp_path):
    tensors = from_reference_names(reference_tensors(tiny_backbone()), "huggingface")
    names = list(tensors)
    files = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, held in files.items():
        saved({name: tensors[name] for name in held}, tmp_path, file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 3}))
    stored = {"size": {"shortest_edge": 40}, "crop_size": {"height": 28}, "image_mean": [0, 0.5, 1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    loaded = dinov2_jax.load(tmp_path)
    assert same(loaded, tiny_backbone())
    assert loaded.model.heads == 3
    assert (loaded.preprocessing.resize_px, loaded.preprocessing.image_px) == (40, 28)
    assert loaded.preprocessing.mean == (0, 0.5, 1)


def test_names_of_a_training_checkpoint(tmp_path):
    """Wrappers of modules, chunks of blocks, and a head that comes along."""
    source, head = tiny_backbone(), np.ones((8, 24), np.float32)
    tensors = {
        f"module.backbone.{name}".replace("blocks.", "blocks.1."): value
        for name, value in reference_tensors(source).items()
    }
    loaded = dinov2_jax.load(
        saved(tensors | {"module.dino_head.mlp.0.weight": head}, tmp_path), heads=3
    )
    assert same(loaded, source)
    np.testing.assert_array_equal(loaded.heads["dino_head"]["mlp_0"]["kernel"], head.T)


def test_bundle_and_run_of_ours(tmp_path):
    source = tiny_backbone(4, "swiglu")
    write_bundle(tmp_path / "b", source.model, source.params, source.preprocessing, "here")
    loaded = dinov2_jax.load(tmp_path / "b")
    assert same(loaded, source)
    assert (loaded.model, loaded.preprocessing) == (source.model, source.preprocessing)
    with pytest.raises(WeightsError, match="exists already"):
        write_bundle(tmp_path / "b", source.model, source.params, source.preprocessing, "here")
    (tmp_path / "b" / "bundle.json").write_text('{"architecture": {}}')
    with pytest.raises(WeightsError, match="damaged bundle"):
        dinov2_jax.load(tmp_path / "b")


def broken_file(kind: str, folder: Path) -> Path:
    tensors = reference_tensors(tiny_backbone())
    if kind == "missing":
        del tensors["blocks.1.mlp.fc1.bias"]
    elif kind == "missing everywhere":
        del tensors["norm.bias"]
    elif kind == "extra":
        tensors["fc_norm.weight"] = np.ones(24, np.float32)
    elif kind == "shape":
        tensors["norm.weight"] = np.ones(23, np.float32)
    elif kind == "float16":
        tensors = {name: x.astype(np.float16) for name, x in tensors.items()}
    elif kind == "bfloat16":
        tensors = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    elif kind == "another network":
        tensors = {"conv1.weight": np.ones((3, 3), np.float32)}
    path = saved(tensors, folder)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "page":
        path.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    elif kind == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("truncated", "is damaged or no safetensors file"),
        ("page", "is a web page, not weights: the download failed"),
        ("empty", "is damaged or no safetensors file"),
        ("missing", r"'mlp/fc1/bias' is missing in some of the 2 blocks"),
        ("missing everywhere", r"lacks 1 of \d+ tensors: norm/bias"),
        ("extra", r"1 tensors that have no place in a DINOv2 backbone: fc_norm\.weight"),
        ("shape", r"differs in 1 of \d+ tensors: norm/scale \(23,\) instead of \(24,\)"),
        ("float16", r"holds float16 and not float32.*allow=\['float16'\]"),
        ("bfloat16", r"holds bfloat16 and not float32.*allow=\['bfloat16'\]"),
        ("another network", "not the tensors of a DINOv2 backbone"),
    ],
)
def test_broken_input_is_one_sentence_and_leaves_nothing(kind, text, tmp_path, capsys):
    path = broken_file(kind, tmp_path)
    with pytest.raises(WeightsError, match=text) as error:
        dinov2_jax.load(path, heads=3)
    assert "\n" not in str(error.value)
    config = f"--config={Path(__file__).parents[2] / 'configs/export.py'}"
    line = [f"--config.checkpoint={path}", "--config.format=bundle", "--config.heads=3"]
    assert main(["main", config, *line, f"--workdir={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_when_it_is_asked_for(kind, tmp_path):
    loaded = dinov2_jax.load(broken_file(kind, tmp_path), heads=3, allow=[kind])
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(loaded.params))
    assert f"stored as {kind}: widened to float32" in loaded.report
    want = np.asarray(tiny_backbone().params["norm"]["scale"])
    np.testing.assert_allclose(loaded.params["norm"]["scale"], want, rtol=1e-2)


def test_what_may_be_left_over_or_missing_is_named(tmp_path):
    loaded = dinov2_jax.load(broken_file("extra", tmp_path), heads=3, allow=["fc_norm.weight"])
    assert same(loaded, tiny_backbone())


def test_wrong_architecture(tmp_path):
    path = saved(reference_tensors(tiny_backbone()), tmp_path)
    with pytest.raises(WeightsError, match=r"is not dinov2_vitb14: it has width 24.*width 768"):
        dinov2_jax.load(path, heads=3, architecture="dinov2_vitb14")
    with pytest.raises(WeightsError, match=r"attention heads does not follow.*heads="):
        dinov2_jax.load(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dinov2_vitx14", "neither a path nor one of dinov2_vits14"),
        ("some/where.safetensors", "no weights at some/where.safetensors"),
        ("folder", r"holds no model\.safetensors or pytorch_model\.bin"),
        ("notes.txt", r"is none of \.safetensors, \.pth"),
    ],
)
def test_nothing_to_load(name, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=text):
        dinov2_jax.load(name)


def test_a_name_without_network_says_which_file_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"dinov2_vits14_reg4_pretrain\.pth.*give the path"):
        dinov2_jax.load("dinov2_vits14_reg")


def test_list_models():
    names = dinov2_jax.list_models()
    assert len(names) == 8
    assert names[:2] == ["dinov2_vits14", "dinov2_vitb14"]
    assert "dinov2_vitg14_reg" in names


def test_import_is_light():
    """No backend, no JAX, no torch."""
    program = (
        "import sys, dinov2_jax; "
        "heavy = {'jax', 'torch', 'tensorflow', 'flax', 'numpy'} & sys.modules.keys(); "
        "print(sorted(heavy))"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
