"""load(): strict, from files as they are found in the world, the broken ones included."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import dinov2_jax
from dinov2_jax.main import main
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.export import export
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


# What is met under the name of weights.
OTHERS = {
    "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "json": b'{"error": "Entry not found"}',
    "xml": b"<Error><Code>AccessDenied</Code></Error>",
    "torch": b"PK\x03\x04" + bytes(100),
}


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
    elif kind == "nan":
        tensors["norm.bias"] = tensors["norm.bias"] * np.float32("nan")
    elif kind == "infinity":
        tensors["blocks.1.attn.proj.weight"][0, 0] = np.inf
    elif kind == "quantised":
        tensors["norm.bias"] = tensors["norm.bias"].astype(np.int8)
    path = saved(tensors, folder)
    if kind in OTHERS:
        path.write_bytes(OTHERS[kind])
    elif kind == "truncated":
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
        ("empty", "is empty; download it again"),
        ("missing", r"'mlp/fc1/bias' is missing in some of the 2 blocks"),
        ("missing everywhere", r"lacks 1 of \d+ tensors: norm/bias"),
        ("extra", r"1 tensors that have no place in a DINOv2 backbone: fc_norm\.weight"),
        ("shape", r"differs in 1 of \d+ tensors: norm/scale \(23,\) instead of \(24,\)"),
        ("float16", r"holds float16 and not float32.*allow=\['float16'\]"),
        ("bfloat16", r"holds bfloat16 and not float32.*allow=\['bfloat16'\]"),
        ("nan", r"holds NaN or infinity in 1 tensors: backbone/norm/bias; download it again"),
        ("infinity", r"holds NaN or infinity in 1 tensors: backbone/blocks/attn/proj/kernel"),
        ("quantised", r"holds int8 instead of float32, as quantised weights do"),
        ("git lfs", r"is a pointer of Git LFS, not the weights; fetch them: git lfs pull"),
        ("gzip", r"is a gzip archive, not weights; unpack it"),
        ("json", r"is text, not weights \(it says .*Entry not found"),
        ("xml", "is a web page, not weights"),
        ("torch", r"is a file of torch\.save; name it \.pth"),
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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (OTHERS["git lfs"], "is a pointer of Git LFS"),
        (OTHERS["gzip"], "is a gzip archive"),
        (OTHERS["json"], "is text, not weights"),
        (b"PK\x05\x06" + bytes(18), "is no file that torch.save wrote"),
        (b"BZh9" + bytes(50), "is a bzip2 archive"),
        (b"\x89HDF\r\n" + bytes(50), "is an HDF5 file"),
        (b"\x93NUMPY" + bytes(50), "is a single array of numpy"),
        (b"\x00\x01\x02\x03" * 20, r"no file that torch\.save wrote \(it begins with b'\\x00"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "pytorch_model.bin", "x.ckpt"])
def test_what_is_no_pickle_is_called_what_it_is(content, text, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=text) as error:
        dinov2_jax.load(tmp_path / name)
    assert "run code" not in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_zip_and_torchscript(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match=r"is damaged or truncated|is a zip archive"):
        dinov2_jax.load(tmp_path / "damaged.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("weights/a.bin", "x")
    with pytest.raises(WeightsError, match="is a zip archive, not weights; unpack it"):
        dinov2_jax.load(tmp_path / "a.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="is a TorchScript program; save the state dict"):
        dinov2_jax.load(tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(saved({"a": np.ones(3)}, tmp_path).read_bytes())
    with pytest.raises(WeightsError, match=r"is a safetensors file; name it \.safetensors"):
        dinov2_jax.load(tmp_path / "c.pth")


@pytest.mark.parametrize("where", ["a bundle", "a head"])
def test_nan_is_refused_wherever_it_is(where, tmp_path):
    source = tiny_backbone()
    head = {"weight": np.full((2, 48), np.nan, np.float32), "bias": np.zeros(2, np.float32)}
    heads = {"classifier": head | {"metadata": {"blocks": 1, "avgpool": True}}}
    if where == "a bundle":
        heads, source.params["norm"]["bias"][0] = {}, np.nan
    given = source.model, source.params, source.preprocessing, "here"
    write_bundle(tmp_path / "b", *given, heads)
    with pytest.raises(WeightsError, match=r"holds NaN or infinity"):
        dinov2_jax.load(tmp_path / "b")


def test_dinov1_is_not_said_to_be_of_timm(tmp_path):
    tensors = reference_tensors(tiny_backbone())
    tensors = {k: x for k, x in tensors.items() if ".ls" not in k and k != "mask_token"}
    loaded = dinov2_jax.load(saved(tensors, tmp_path), heads=3)
    assert "no mask_token is stored, as timm and DINOv1 do" in loaded.report[1]


@pytest.mark.parametrize(
    ("registers", "asked", "want"),
    [
        (0, {}, (0.1, False)),
        (0, {"interpolate_offset": 0.0}, (0.0, False)),
        (0, {"interpolate_antialias": True}, (0.0, True)),
        (4, {}, (0.0, True)),
        (4, {"interpolate_offset": 0.1}, (0.1, False)),
        (4, {"interpolate_offset": 0.0}, (0.0, True)),
        (4, {"interpolate_antialias": False}, (0.0, False)),
    ],
)
def test_positions_are_resampled_as_told(registers, asked, want, tmp_path):
    path = saved(reference_tensors(tiny_backbone(registers)), tmp_path)
    loaded = dinov2_jax.load(path, heads=3, **asked)
    assert (loaded.model.interpolate_offset, loaded.model.interpolate_antialias) == want


@pytest.mark.parametrize("form", ["reference", "huggingface", "bundle"])
def test_exports_keep_heads_and_resampling(form, tmp_path):
    path = saved(reference_tensors(tiny_backbone()), tmp_path)
    loaded = dinov2_jax.load(path, heads=3, interpolate_offset=0.0)
    folder = export(loaded, form, tmp_path / "out")
    inside = {"reference": "backbone.safetensors", "bundle": "bundle"}.get(form, "")
    assert dinov2_jax.load(folder / inside).model == loaded.model


@pytest.mark.parametrize("asked", [{"interpolate_offset": 2.0}, {"interpolate_offset": np.nan}])
def test_an_offset_out_of_range(asked, tmp_path):
    path = saved(reference_tensors(tiny_backbone()), tmp_path)
    with pytest.raises(WeightsError, match=r"interpolate_offset is .* from 0 to below 1"):
        dinov2_jax.load(path, heads=3, **asked)
    with pytest.raises(WeightsError, match="not defined together"):
        both = {"interpolate_offset": 0.1, "interpolate_antialias": True}
        dinov2_jax.load(path, heads=3, **both)


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
