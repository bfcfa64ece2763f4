"""Renames the tensors of other libraries to the reference's names, and back.

"reference": the released .pth files and training checkpoints of the original.
"huggingface": transformers' Dinov2 and Dinov2WithRegisters, as saved and as held in memory.
"timm": vit_*_patch14_[reg4_]dinov2; it has no mask token, calls SwiGLU's projections fc1 and fc2,
and with registers adds the position of the cls token to the cls token itself.
"""

import re
from collections.abc import Mapping

import numpy as np

from dinov2_jax.weights.files import WeightsError

Flat = Mapping[str, np.ndarray]

# With block_chunks > 0 the reference writes blocks.{chunk}.{index}; the index is the global one.
_UNCHUNKED = ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),)
# Hugging Face -> reference, below the base model. Files have attention.attention.query and
# mlp.weights_in; modules of releases from 5 on attention.q_proj and, instead of the packed SwiGLU
# projection, its halves gate_proj and up_proj.
_HF_RENAMES = (
    (r"^dinov2(_with_registers)?\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layers?\.", "blocks."),
    (r"^layers?\.", "blocks."),
    (r"attention\.(output\.dense|o_proj)\.", "attn.proj."),
    (r"attention\.(attention\.)?(query|q_proj)\.", "attn.q."),
    (r"attention\.(attention\.)?(key|k_proj)\.", "attn.k."),
    (r"attention\.(attention\.)?(value|v_proj)\.", "attn.v."),
    (r"layer_scale(\d)\.lambda1$", r"ls\1.gamma"),
    (r"mlp\.weights_in\.", "mlp.w12."),
    (r"mlp\.(weights_out|down_proj)\.", "mlp.w3."),
)
_HF_PARTS = (
    (("attn.q", "attn.k", "attn.v"), "attn.qkv"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.w12"),
)
# Reference -> the names of Hugging Face files.
_TO_HF = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.w12\.", ".mlp.weights_in."),
    (r"\.mlp\.w3\.", ".mlp.weights_out."),
)
_HF_QKV = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
# SwiGLU's projections: timm -> reference, and back.
_TIMM_SWIGLU = ((r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3."))
_TO_TIMM_SWIGLU = ((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."))


def layout_of(names: set[str]) -> str:
    """Tells which of the three layouts these tensor names follow.

    Raises:
      WeightsError: none of them; the message lists the first few names.
    """
    if any("embeddings.cls_token" in name for name in names):
        return "huggingface"
    if {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= names:
        return "reference" if "mask_token" in names else "timm"
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight")
    missing = [name for name in needed if not any(held.endswith(name) for held in names)]
    held = ", ".join(sorted(names)[:6])
    raise WeightsError(
        f"these are not the tensors of a DINOv2 backbone: {', '.join(missing)} missing, held are "
        f"{held}, ...; expected the names of the released files, of Hugging Face Dinov2 or of "
        "timm's vit_*_dinov2, after any prefix"
    )


def to_reference_names(tensors: Flat, layout: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Renames tensors to the reference's names.

    Returns:
      The tensors, and notes on those that the layout lacks.

    Raises:
      WeightsError: one part of a projection is missing.
    """
    if layout == "huggingface":
        return _from_huggingface(tensors), []
    if layout == "timm":
        return _from_timm(tensors)
    return {rename(name, _UNCHUNKED): value for name, value in tensors.items()}, []


def from_reference_names(tensors: Flat, layout: str) -> dict[str, np.ndarray]:
    """Renames a backbone's tensors from the reference's names."""
    if layout == "huggingface":
        return _to_huggingface(tensors)
    return _to_timm(tensors) if layout == "timm" else dict(tensors)


def rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Applies all substitutions (pattern, replacement) to `name`, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _from_huggingface(tensors: Flat) -> dict[str, np.ndarray]:
    out = {rename(name, _HF_RENAMES): np.asarray(value) for name, value in tensors.items()}
    for parts, joined in _HF_PARTS:
        for key in [k for k in out if f".{parts[0]}." in k]:
            names = [key.replace(parts[0], part) for part in parts]
            missing = [name for name in names if name not in out]
            if missing:
                raise WeightsError(f"tensor {missing[0]!r} is missing, but {key!r} is there")
            out[key.replace(parts[0], joined)] = np.concatenate([out.pop(n) for n in names])
    return out


def _to_huggingface(tensors: Flat) -> dict[str, np.ndarray]:
    out = {}
    for name, value in tensors.items():
        renamed = rename(name, _TO_HF)
        if ".attn.qkv." in renamed:
            for part, rows in zip(_HF_QKV, np.split(value, 3), strict=True):
                out[renamed.replace("attn.qkv", part)] = rows
        else:
            out[renamed] = value
    return out


def _from_timm(tensors: Flat) -> tuple[dict[str, np.ndarray], list[str]]:
    out = {name: np.asarray(value) for name, value in tensors.items()}
    notes = ["no mask_token is stored, as timm and DINOv1 do: zeros, its initial value"]
    dim = out["cls_token"].shape[-1]
    out["mask_token"] = np.zeros((1, dim), out["cls_token"].dtype)
    if "reg_token" in out:
        out["register_tokens"] = out.pop("reg_token")
        row = np.zeros((1, 1, dim), out["pos_embed"].dtype)
        out["pos_embed"] = np.concatenate([row, out["pos_embed"]], axis=1)
        notes.append("timm's cls_token holds its position too: row 0 of pos_embed is zero")
    first, second = (out.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if first is not None and second is not None and len(first) == 2 * second.shape[1]:
        out = {rename(name, _TIMM_SWIGLU): value for name, value in out.items()}
    return out, notes


def _to_timm(tensors: Flat) -> dict[str, np.ndarray]:
    out = {rename(name, _TO_TIMM_SWIGLU): value for name, value in tensors.items()}
    out.pop("mask_token", None)
    if "register_tokens" in out:
        out["reg_token"] = out.pop("register_tokens")
        position = out["pos_embed"]
        out["cls_token"] = out["cls_token"] + position[:, :1]
        out["pos_embed"] = position[:, 1:]
    return out
