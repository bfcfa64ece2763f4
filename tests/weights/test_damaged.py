"""Damaged or odd weights and settings are told in one sentence that names the file."""

import json

import numpy as np
import pytest
import safetensors.numpy

from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.heads import read_head
from dinov2_jax.weights.load import load
from tests.weights.tiny import reference_tensors, tiny_backbone


@pytest.fixture(scope="module")
def tensors():
    return reference_tensors(tiny_backbone())


@pytest.mark.parametrize(
    "content",
    [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000],
    ids=lambda content: content[:20].decode("latin-1"),
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "model.safetensors.index.json"])
def test_damaged_settings(tensors, tmp_path, name, content):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="download it again"):
        load(tmp_path, heads=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": ["a", "b", "c"]}, {"size": {"shortest_edge": "32"}},
        {"crop_size": {"height": -1}}, {"image_std": [0]}, {"size": -3},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_fit_no_picture(tensors, tmp_path, settings):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (name,) = settings
    with pytest.raises(WeightsError, match=rf"preprocessor_config\.json.*{name}"):
        load(tmp_path, heads=3)


@pytest.mark.parametrize("heads", [-3, 5, [3], 1e300, 10**25])
def test_an_impossible_number_of_heads(tensors, tmp_path, heads):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": heads}))
    with pytest.raises(WeightsError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize("files", [{"a": "../model.safetensors"}, {}, {"a": 3}, {"a": "none"}])
def test_an_index_names_files_beside_it(tensors, tmp_path, files):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    folder = tmp_path / "below"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(WeightsError, match=str(folder)):
        load(folder)


@pytest.mark.timeout(60)
def test_a_block_of_a_huge_number_does_not_hang(tensors, tmp_path):
    renamed = {name.replace("blocks.1.", "blocks.99999999."): x for name, x in tensors.items()}
    safetensors.numpy.save_file(renamed, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="2 blocks, numbered up to 99999999"):
        load(tmp_path / "x.safetensors", heads=3)


@pytest.mark.parametrize("name", ["cls_token", "pos_embed", "blocks.0.attn.qkv.weight"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 24), (1, 1, 1, 1)])
def test_tensors_of_another_shape(tensors, tmp_path, name, shape):
    odd = {**tensors, name: np.zeros(shape, np.float32)}
    safetensors.numpy.save_file(odd, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError):
        load(tmp_path / "x.safetensors", heads=3)


@pytest.mark.parametrize(
    "about", ["", "{", "[]", "3", "{}", '{"blocks": 1, "avgpool": true, "class_names": [3]}']
)
def test_a_head_with_damaged_metadata(tmp_path, about):
    head = {"weight": np.zeros((3, 48), np.float32), "bias": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(head, tmp_path / "x.safetensors", {"linear_head": about})
    with pytest.raises(WeightsError, match=r"x\.safetensors is damaged"):
        read_head(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "odd",
    [{"resize_px": 0}, {"image_px": "224"}, {"std": (1, 0, 1)}, {"mean": (float("nan"),) * 3}],
)
def test_preprocessing_that_normalises_nothing(odd):
    with pytest.raises(ValueError):
        Preprocessing(**odd)
