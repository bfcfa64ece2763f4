"""Backbones inside of what other programs save: prefixes, other models, foreign heads."""

import numpy as np
import pytest

import dinov2_jax
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.hub import released_name
from dinov2_jax.weights.layouts import from_reference_names
from tests.weights.test_load import same, saved
from tests.weights.tiny import reference_tensors, tiny_backbone

TENSORS = reference_tensors(tiny_backbone())
OTHER = {name: x + 1 for name, x in TENSORS.items()}


def under(prefix, tensors=TENSORS):
    return {f"{prefix}{name}": x for name, x in tensors.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "pretrained.",
        "model.backbone.",
        "teacher.backbone.",
        "teacher_embedding_model.wrapped_model._model.",
        "module.encoder.",
        "base_model.model.",
        "net.trunk.",
        "image_encoder.",
        "_orig_mod.module.vit.",
    ],
)
@pytest.mark.parametrize("layout", ["reference", "huggingface"])
def test_any_prefix_is_found(prefix, layout, tmp_path):
    tensors = under(prefix, from_reference_names(TENSORS, layout))
    assert same(dinov2_jax.load(saved(tensors, tmp_path), heads=3), tiny_backbone())


def wrapped(kind):
    import torch

    plain, other = ({k: torch.from_numpy(x) for k, x in y.items()} for y in (TENSORS, OTHER))
    return {
        "model_state_dict": {"model_state_dict": plain, "epoch": 3},
        "net": {"net": plain, "optimizer": {"state": {0: {"exp_avg": plain["norm.bias"]}}}},
        "nested": {"checkpoint": {"state_dict": under("model.backbone.", plain)}},
        "ema": {"state_dict": other, "state_dict_ema": plain},
        "model and ema": {"model": under("module.", other), "model_ema": plain, "args": {}},
        "both sides": {"teacher": under("backbone.", plain), "student": under("backbone.", other)},
    }[kind]


@pytest.mark.parametrize(
    "kind", ["model_state_dict", "net", "nested", "ema", "model and ema", "both sides"]
)
def test_any_nesting_is_found(kind, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(wrapped(kind), tmp_path / "x.pth")
    assert same(dinov2_jax.load(tmp_path / "x.pth", heads=3), tiny_backbone())
    if kind in ("ema", "both sides"):
        student = dinov2_jax.load(tmp_path / "x.pth", heads=3, which="student")
        np.testing.assert_array_equal(student.params["norm"]["bias"], OTHER["norm.bias"])


def test_the_side_is_chosen_by_name_and_told(tmp_path):
    tensors = under("student.backbone.", OTHER) | under("teacher.backbone.")
    tensors |= {"student.dino_head.mlp.0.weight": np.zeros((8, 24), np.float32)}
    path = saved(tensors, tmp_path)
    loaded = dinov2_jax.load(path, heads=3)
    assert same(loaded, tiny_backbone()) and "the backbone of 'teacher.backbone'" in loaded.report
    assert not loaded.heads
    student = dinov2_jax.load(path, heads=3, which="student")
    assert student.heads.keys() == {"dino_head"}


def test_two_backbones_are_told_apart_by_allow(tmp_path):
    path = saved(under("left.", OTHER) | under("right."), tmp_path)
    with pytest.raises(WeightsError, match=r"2 backbones: left, right; .*--config\.allow=right"):
        dinov2_jax.load(path, heads=3)
    assert same(dinov2_jax.load(path, heads=3, allow=["left"]), tiny_backbone())


@pytest.mark.parametrize("prefix", ["", "backbone.", "pretrained."])
def test_foreign_heads_are_left_over_by_module(prefix, tmp_path):
    extra = {f"neck.{n}.weight": np.ones(3, np.float32) for n in range(60)}
    extra |= {"head.bias": np.ones(2, np.float32), "depth_head.bias": np.ones(2, np.float32)}
    path = saved(under(prefix) | extra, tmp_path)
    with pytest.raises(WeightsError, match=r"62 tensors .*allow=depth_head,head,neck,"):
        dinov2_jax.load(path, heads=3)
    with pytest.raises(WeightsError, match=r"1 tensors .*allow=neck,head,depth_head,"):
        dinov2_jax.load(path, heads=3, allow=["neck", "head"])
    loaded = dinov2_jax.load(path, heads=3, allow=["neck", "head.", "depth_head.*"])
    assert same(loaded, tiny_backbone())
    assert any("left over, as allowed: " in line for line in loaded.report)


def test_unmerged_lora_says_how_to_merge(tmp_path):
    tensors = under("base_model.model.")
    tensors["base_model.model.blocks.0.attn.qkv.base_layer.weight"] = np.ones(3, np.float32)
    with pytest.raises(WeightsError, match="merge_and_unload"):
        dinov2_jax.load(saved(tensors, tmp_path), heads=3)


@pytest.mark.parametrize("lost", ["pos_embed", "cls_token", "patch_embed.proj.weight"])
def test_what_is_missing_and_what_is_held_are_named(lost, tmp_path):
    tensors = {f"model.{name}": x for name, x in TENSORS.items() if name != lost}
    with pytest.raises(
        WeightsError,
        match=rf"^{tmp_path}/x\.safetensors: .*{lost}.* missing, held are .*blocks\.0\.attn",
    ):
        dinov2_jax.load(saved(tensors, tmp_path), heads=3)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("dinov2_vitb14_reg", "dinov2_vitb14_reg"),
        ("facebook/dinov2-small", "dinov2_vits14"),
        ("facebook/dinov2-with-registers-giant", "dinov2_vitg14_reg"),
        ("vit_base_patch14_dinov2.lvd142m", "dinov2_vitb14"),
        ("vit_large_patch14_reg4_dinov2", "dinov2_vitl14_reg"),
        ("timm/vit_small_patch14_dinov2.lvd142m", "dinov2_vits14"),
        ("hf_hub:timm/vit_giant_patch14_dinov2.lvd142m", "dinov2_vitg14"),
        ("hf-hub:facebook/dinov2-base", "dinov2_vitb14"),
        ("facebookresearch/dinov2:dinov2_vitl14", "dinov2_vitl14"),
        ("facebook/dinov2-huge", ""),
        ("vit_base_patch16_224", ""),
    ],
)
def test_names_of_other_libraries(name, want):
    assert released_name(name) == want


def test_a_name_that_is_nearly_known_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="did you mean 'facebook/dinov2-small'"):
        dinov2_jax.load("facebook/dinov2-smal")
    with pytest.raises(WeightsError, match="did you mean 'dinov2_vits14'"):
        dinov2_jax.load("dinov2_vits41")
