"""What lies beside the tensors: config.json, preprocessor_config.json and timm's pretrained_cfg."""

import json

import numpy as np
import pytest

import dinov2_jax
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.main import main
from dinov2_jax.weights.export import export
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.huggingface import model_config
from tests.weights.tiny import tiny_backbone

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return export(tiny_backbone(), "huggingface", tmp_path_factory.mktemp("exported"))


def beside(directory, folder, preprocessor=None, config=None, channels=3):
    """The weights with other settings beside them."""
    (folder / "model.safetensors").symlink_to(directory / "model.safetensors")
    config = model_config(tiny_backbone()) if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize(
    ("stored", "want"),
    [
        ({"size": 256, "crop_size": 224}, Preprocessing(256, 224, **CLIP)),
        ({"crop_size": 28}, Preprocessing(224, 28, **CLIP)),
        ({"size": None, "crop_size": None}, Preprocessing(224, 224, **CLIP)),
        ({"crop_size": [42, 42]}, Preprocessing(224, 42, **CLIP)),
        ({"image_mean": 0.5, "image_std": [0.5]}, Preprocessing(224, 224, (0.5,) * 3, (0.5,) * 3)),
        ({"do_normalize": False}, Preprocessing(224, 224, (0.0,) * 3, (1.0,) * 3)),
        (
            {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
            Preprocessing(224, 224, (0.5,) * 3, (0.5,) * 3),
        ),
        (
            {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3},
            Preprocessing(224, 224, (0.5,) * 3, (0.2,) * 3),
        ),
    ],
)
def test_what_can_be_followed_is_followed(stored, want, directory, tmp_path):
    found = dinov2_jax.load(beside(directory, tmp_path, stored)).preprocessing
    assert (found.resize_px, found.image_px) == (want.resize_px, want.image_px)
    np.testing.assert_allclose((found.mean, found.std), (want.mean, want.std), rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    "stored",
    [
        {"size": 60, "crop_size": 42},
        {"size": 60, "crop_size": 42, "image_mean": 0.25, "image_std": 0.5},
        {"size": {"shortest_edge": 60}, "crop_size": 42, "do_normalize": False},
        {"size": {"shortest_edge": 60}, "crop_size": 42, "rescale_factor": 1 / 127.5},
        {"size": {"shortest_edge": 60}, "crop_size": {"height": 70, "width": 70}},
    ],
)
def test_pictures_are_those_of_transformers(stored, directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    folder = beside(directory, tmp_path, stored)
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8)).resize((90, 120))
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)
    want = theirs(smooth, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    got = dinov2_jax.load(folder).preprocess(smooth)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"size": {"height": 42, "width": 42}, "do_center_crop": False}, "size,do_center_crop"),
        ({"size": {"shortest_edge": 42}, "do_center_crop": False}, "do_center_crop"),
        ({"size": {"shortest_edge": 42, "longest_edge": 56}}, "size"),
        ({"do_resize": False}, "do_resize"),
        ({"crop_size": {"height": 42, "width": 56}}, "crop_size"),
        ({"resample": 2}, "resample"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"size": "large"}, "size"),
        ({"image_processor_type": "ViTImageProcessor"}, "size,do_center_crop,resample"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "image_processor_type"),
    ],
)
def test_what_cannot_is_refused_and_the_remedy_works(stored, words, directory, tmp_path, capsys):
    folder = beside(directory, tmp_path, stored)
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json asks for") as error:
        dinov2_jax.load(folder)
    flag = f"--config.allow={words}"
    assert "\n" not in str(error.value)
    assert set(flag.split(",")) <= set(str(error.value).split(": ")[-1].split(", or")[0].split(","))
    found = dinov2_jax.load(folder, allow=words.split(","))
    assert any("not followed, as allowed" in line for line in found.report)
    assert found.preprocessing.resize_px and len(found.preprocessing.mean) == 3
    line = [f"--config.checkpoint={folder}", "--config.format=reference", flag]
    assert main(["main", "--config=export", *line, f"--workdir={tmp_path / 'out'}"]) == 0
    dinov2_jax.load(folder, allow=["preprocessor_config.json"])


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ({"image_std": 0}, "image_std is 0, which fits no picture"),
        ({"image_mean": "bright"}, "image_mean is bright"),
        ({"rescale_factor": "1/255"}, "rescale_factor is 1/255"),
        ([1, 2], "holds no JSON object"),
    ],
)
def test_settings_without_sense_are_one_sentence(stored, text, directory, tmp_path):
    with pytest.raises(WeightsError, match=text):
        dinov2_jax.load(beside(directory, tmp_path, stored))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"layer_norm_eps": 1e-3},
        {"layer_norm_eps": 1e-12},
        {"num_hidden_layers": 1},
        {"qkv_bias": False},
        {"num_register_tokens": 4},
        {"patch_size": 14},
    ],
)
def test_a_config_that_computes_other_features_is_refused(changes, directory, tmp_path):
    folder = beside(directory, tmp_path, config=model_config(tiny_backbone()) | changes)
    (name,) = changes
    with pytest.raises(WeightsError, match=rf"config\.json of .* asks for {name} .*allow={name}"):
        dinov2_jax.load(folder)
    with pytest.raises(WeightsError, match=name):  # the file alone has the same settings beside it
        dinov2_jax.load(folder / "model.safetensors")
    assert any(name in line for line in dinov2_jax.load(folder, allow=[name]).report)


def test_the_config_of_a_larger_model_holds_that_of_its_backbone(directory, tmp_path):
    config = model_config(tiny_backbone()) | {"num_attention_heads": 4}
    folder = beside(directory, tmp_path, config={"model_type": "x", "backbone_config": config})
    assert dinov2_jax.load(folder).model.heads == 4
    (folder / "config.json").write_text(
        json.dumps({"backbone_config": config | {"hidden_act": "x"}})
    )
    with pytest.raises(WeightsError, match="hidden_act"):
        dinov2_jax.load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
    with pytest.raises(WeightsError, match="24 cannot be split into 5 attention heads"):
        dinov2_jax.load(folder)


def timm_directory(folder, **changes):
    """As timm.models.save_for_hf writes it."""
    written = export(tiny_backbone(), "timm", folder)
    from safetensors.numpy import load_file, save_file

    save_file(load_file(written / "model.safetensors"), written / "model.safetensors")
    cfg = {"input_size": [3, 56, 56], "crop_pct": 1.0, "crop_mode": "center"}
    cfg |= {"interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    arguments = {"num_heads": 3, "img_size": 28, "init_values": 1.0}
    for name, value in changes.items():
        (cfg if name in (*cfg, "crop_mode") else arguments)[name] = value
    config = {"architecture": "vit_small_patch14_dinov2", "pretrained_cfg": cfg}
    (written / "config.json").write_text(json.dumps(config | {"model_args": arguments}))
    return written


def test_timm_keeps_its_preprocessing_in_config_json(tmp_path):
    found = dinov2_jax.load(timm_directory(tmp_path))
    assert found.preprocessing == Preprocessing(56, 56, (0.5,) * 3, (0.5,) * 3)
    assert found.model.heads == 3
    found = dinov2_jax.load(timm_directory(tmp_path / "b", crop_pct=0.875) / "model.safetensors")
    assert (found.preprocessing.resize_px, found.preprocessing.image_px) == (64, 56)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_size", [3, 56, 70]),
        ("crop_mode", "squash"),
        ("interpolation", "bilinear"),
        ("act_layer", "quick_gelu"),
        ("qk_norm", True),
    ],
)
def test_what_timm_does_otherwise_is_refused(name, value, tmp_path):
    folder = timm_directory(tmp_path, **{name: value})
    with pytest.raises(WeightsError, match=rf"asks for {name} .*allow={name}"):
        dinov2_jax.load(folder)
    assert dinov2_jax.load(folder, allow=[name]).model.dim == 24


@pytest.mark.parity
def test_a_gray_model_is_fed_by_its_own_processor(tmp_path):
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    source = tiny_backbone(channels=1)
    gray = Preprocessing(32, 28, (0.449,), (0.226,))
    folder = export(
        dinov2_jax.weights.export.dataclasses.replace(source, preprocessing=gray),
        "huggingface",
        tmp_path,
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8))
    inputs = transformers.AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
    out = transformers.AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    assert out.shape == (1, 17, 24)
    assert dinov2_jax.load(folder).preprocessing == gray
