"""Converts the reference's flat state dicts to our parameter tree and back, by one key table.

Reference names are those of the released files (`blocks.0.attn.qkv.weight`, torch layouts: linear
(out, in), convolution (out, in, h, w)); ours stack all blocks on a leading depth axis and keep
linear kernels as (in, out); prototypes are rows on both sides.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Flat = Mapping[str, np.ndarray]

# Our path (below a block, or below the backbone or head) -> the reference's key.
_BLOCK_KEYS = {
    "norm1/scale": "norm1.weight",
    "norm1/bias": "norm1.bias",
    "attn/qkv/kernel": "attn.qkv.weight",
    "attn/qkv/bias": "attn.qkv.bias",
    "attn/proj/kernel": "attn.proj.weight",
    "attn/proj/bias": "attn.proj.bias",
    "ls1/gamma": "ls1.gamma",
    "norm2/scale": "norm2.weight",
    "norm2/bias": "norm2.bias",
    "mlp/fc1/kernel": "mlp.fc1.weight",
    "mlp/fc1/bias": "mlp.fc1.bias",
    "mlp/fc2/kernel": "mlp.fc2.weight",
    "mlp/fc2/bias": "mlp.fc2.bias",
    "mlp/w12/kernel": "mlp.w12.weight",
    "mlp/w12/bias": "mlp.w12.bias",
    "mlp/w3/kernel": "mlp.w3.weight",
    "mlp/w3/bias": "mlp.w3.bias",
    "ls2/gamma": "ls2.gamma",
}
_TOP_KEYS = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "register_tokens": "register_tokens",
    "mask_token": "mask_token",
    "patch_embed/kernel": "patch_embed.proj.weight",
    "patch_embed/bias": "patch_embed.proj.bias",
    "norm/scale": "norm.weight",
    "norm/bias": "norm.bias",
    "last_layer/weight_g": "last_layer.weight_g",
    "last_layer/weight_v": "last_layer.weight_v",
} | {
    f"mlp_{i}/{ours}": f"mlp.{i}.{theirs}"
    for i in range(0, 20, 2)
    for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
}
_OUR_BLOCK = {theirs: ours for ours, theirs in _BLOCK_KEYS.items()}
_OUR_TOP = {theirs: ours for ours, theirs in _TOP_KEYS.items()}
_BLOCK_ORDER, _TOP_ORDER = list(_OUR_BLOCK), list(_OUR_TOP)
# With block_chunks > 0 the reference writes blocks.{chunk}.{index}; the index is the global one.
_BLOCK = re.compile(r"^blocks\.(?:\d+\.)?(\d+)\.(.+)$")


def _to_our_layout(path: str, value: np.ndarray) -> np.ndarray:
    """torch layout -> ours, for one array (of one block)."""
    if path == "patch_embed/kernel":  # (D, C, p, p) -> (p * p * C, D)
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    if path.endswith("kernel"):
        return value.T
    return value[:, 0] if path == "last_layer/weight_g" else value


def _to_reference_layout(path: str, value: np.ndarray, patch_size: int) -> np.ndarray:
    if path == "patch_embed/kernel":
        dim = value.shape[-1]
        return value.reshape(patch_size, patch_size, -1, dim).transpose(3, 2, 0, 1)
    if path.endswith("kernel"):
        return value.T
    return value[:, None] if path == "last_layer/weight_g" else value


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a tree of parameters to {"blocks/attn/qkv/kernel": ...}."""
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        _set(tree, path, value)
    return tree


def unknown_names(state_dict: Flat) -> list[str]:
    """Names of a reference state dict that have no counterpart here."""
    return [name for name in state_dict if _our_path(name) is None]


def _our_path(key: str) -> str | None:
    block = _BLOCK.match(key)
    return _OUR_BLOCK.get(block[2]) if block else _OUR_TOP.get(key)


def from_reference(state_dict: Flat) -> dict[str, Any]:
    """Converts the state dict of a reference backbone or head to our parameters.

    Raises:
      ValueError: a key has no counterpart here, or some blocks lack a weight.
    """
    params: dict[str, Any] = {}
    stacked: dict[str, dict[int, np.ndarray]] = {}
    for key, value in state_dict.items():
        block, path = _BLOCK.match(key), _our_path(key)
        if path is None:
            raise ValueError(
                f"weight {key!r} has no counterpart here; expected a DINOv2 state dict"
            )
        value = _to_our_layout(path, np.asarray(value))
        if block:
            stacked.setdefault(path, {})[int(block[1])] = value
        else:
            _set(params, path, value)
    depth = max((len(values) for values in stacked.values()), default=0)
    for path, values in stacked.items():
        if sorted(values) != list(range(depth)):
            raise ValueError(f"weight {path!r} is missing in some of the {depth} blocks")
        _set(params, f"blocks/{path}", np.stack([values[i] for i in range(depth)]))
    return params


def to_reference(params: Mapping[str, Any], patch_size: int = 1) -> dict[str, np.ndarray]:
    """Converts our parameters of a backbone or head to the reference's flat state dict.

    Args:
      patch_size: of the backbone, for the shape of the patch embedding; unused for heads.
    """
    out = {}
    for path, value in flatten(params).items():
        value = np.asarray(value)
        if path.startswith("blocks/"):
            path = path.removeprefix("blocks/")
            for i, layer in enumerate(value):
                out[f"blocks.{i}.{_BLOCK_KEYS[path]}"] = _to_reference_layout(path, layer, 1)
        else:
            out[_TOP_KEYS[path]] = _to_reference_layout(path, value, patch_size)
    return {name: out[name] for name in sorted(out, key=_position)}


def _position(name: str) -> tuple[int, int, int]:
    """The place of a tensor in the released files: tokens and patches, blocks, final norm."""
    block = _BLOCK.match(name)
    if block:
        return 1, int(block[1]), _BLOCK_ORDER.index(block[2])
    return 2 * name.startswith("norm."), 0, _TOP_ORDER.index(name)
