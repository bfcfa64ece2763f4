"""Converts the reference's flat state dicts to our parameter tree and back.

Reference names are those of the released files (`blocks.0.attn.qkv.weight`, torch layouts: linear
(out, in), convolution (out, in, h, w)); ours stack all blocks on a leading depth axis and keep
linear kernels as (in, out); prototypes are rows on both sides.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dinov2_jax.weights.layouts import Flat, rename

# The parameters of a block, and those of a backbone or head, in the order of the released files.
_BLOCK_PATHS = (
    "norm1/scale", "norm1/bias", "attn/qkv/kernel", "attn/qkv/bias", "attn/proj/kernel",
    "attn/proj/bias", "ls1/gamma", "norm2/scale", "norm2/bias", "mlp/fc1/kernel", "mlp/fc1/bias",
    "mlp/fc2/kernel", "mlp/fc2/bias", "mlp/w12/kernel", "mlp/w12/bias", "mlp/w3/kernel",
    "mlp/w3/bias", "ls2/gamma",
)  # fmt: skip
_TOP_PATHS = (
    "cls_token", "pos_embed", "register_tokens", "mask_token", "patch_embed/kernel",
    "patch_embed/bias", "norm/scale", "norm/bias", "last_layer/weight_g", "last_layer/weight_v",
    *(f"mlp_{i}/{name}" for i in range(0, 20, 2) for name in ("kernel", "bias")),
)  # fmt: skip


# Our path -> the reference's key.
_TO_KEY = (
    (r"(kernel|scale)$", "weight"),
    (r"^patch_embed/", "patch_embed.proj."),
    (r"^mlp_", "mlp."),
    (r"/", "."),
)
_OUR_BLOCK = {rename(path, _TO_KEY): path for path in _BLOCK_PATHS}
_OUR_TOP = {rename(path, _TO_KEY): path for path in _TOP_PATHS}
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
    flat: dict[str, np.ndarray] = {}
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
            flat[path] = value
    depth = max(map(len, stacked.values()), default=0)
    for path, values in stacked.items():
        if sorted(values) != list(range(depth)):
            raise ValueError(f"weight {path!r} is missing in some of the {depth} blocks")
        flat[f"blocks/{path}"] = np.stack([values[i] for i in range(depth)])
    return unflatten_dict(flat, sep="/")


def to_reference(params: Mapping[str, Any], patch_size: int = 1) -> dict[str, np.ndarray]:
    """Converts our parameters of a backbone or head to the reference's flat state dict.

    Args:
      patch_size: of the backbone, for the shape of the patch embedding; unused for heads.
    """
    out = {}
    for path, value in flatten_dict(params, sep="/").items():
        own = path.removeprefix("blocks/")
        key, arrays = rename(own, _TO_KEY), {"": np.asarray(value)}
        if own != path:
            arrays = {f"blocks.{i}.": layer for i, layer in enumerate(arrays[""])}
        for prefix, array in arrays.items():
            out[f"{prefix}{key}"] = _to_reference_layout(own, array, patch_size)
    return dict(sorted(out.items(), key=lambda item: _position(item[0])))


def _position(name: str) -> tuple[int, int, int]:
    """The place of a tensor in the released files: tokens and patches, blocks, final norm."""
    block = _BLOCK.match(name)
    if block:
        return 1, int(block[1]), list(_OUR_BLOCK).index(block[2])
    return 2 * name.startswith("norm."), 0, list(_OUR_TOP).index(name)
