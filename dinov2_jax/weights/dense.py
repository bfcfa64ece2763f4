"""Segmentation and depth heads in the released layout, and back.

Keys are those of `decode_head.` in the released files (FB dinov2/hub/depthers.py and
dinov2/eval/segmentation); torch keeps convolutions as (out, in, h, w).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dinov2_jax.models.segmentation import Statistics
from dinov2_jax.weights.layouts import Flat, rename

PREFIX = "decode_head."
# Our path -> the released key, without prefix. The first three are those of the linear heads.
_TO_KEY = (
    (r"^bn/scale$", "bn/weight"),
    (r"(kernel)$", "weight"),
    (r"^head_(\d)/", r"conv_depth/head/\1/"),
    (r"^projects_(\d)/", r"reassemble_blocks/projects/\1/conv/"),
    (r"^readout_projects_(\d)/", r"reassemble_blocks/readout_projects/\1/0/"),
    (r"^resize_layers_(\d)/", r"reassemble_blocks/resize_layers/\1/"),
    (r"^convs_(\d)/", r"convs/\1/conv/"),
    (r"^fusion_blocks_(\d)/", r"fusion_blocks/\1/"),
    (r"((?:^|/)project|/conv[12])/", r"\1/conv/"),
    (r"/", "."),
)
_LEVELS, _SIDES = range(4), ("kernel", "bias")
_PATHS = {
    "segmentation": ("bn/scale", "bn/bias", "kernel", "bias"),
    "depth_linear": _SIDES,
    "depth_dpt": (
        *(f"{part}_{i}/{side}" for part in ("projects", "readout_projects")
          for i in _LEVELS for side in _SIDES),
        *(f"resize_layers_{i}/{side}" for i in (0, 1, 3) for side in _SIDES),
        *(f"convs_{i}/kernel" for i in _LEVELS),
        *(f"fusion_blocks_{i}/project/{side}" for i in _LEVELS for side in _SIDES),
        *(f"fusion_blocks_{i}/res_conv_unit{unit}/conv{n}/kernel"
          for i in _LEVELS for unit in (1, 2) for n in (1, 2) if i or unit == 2),
        *(f"project/{side}" for side in _SIDES),
        *(f"head_{i}/{side}" for i in (0, 2, 4) for side in _SIDES),
    ),
}  # fmt: skip
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def keys_of(kind: str) -> dict[str, str]:
    """{released key without prefix: our path} of a kind of head."""
    top = {"segmentation": "conv_seg.", "depth_linear": "conv_depth."}.get(kind, "")
    keys = {path: rename(path, _TO_KEY) for path in _PATHS[kind]}
    return {(top if path in _SIDES else "") + key: path for path, key in keys.items()}


def names_of() -> dict[str, set[str]]:
    """{kind: all keys of its released files}."""
    found = {kind: {PREFIX + key for key in keys_of(kind)} for kind in _PATHS}
    found["segmentation"] |= {f"{PREFIX}bn.{name}" for name in _STATISTICS}
    return found


def kind_of(names: set[str]) -> str:
    """The kind of head that has exactly these keys; "" for none."""
    return next((kind for kind, wanted in names_of().items() if names == wanted), "")


def from_released(tensors: Flat, kind: str) -> tuple[dict[str, Any], Statistics | None]:
    """Converts the tensors of a released head to our fp32 parameters and running statistics."""
    flat = {
        path: _to_ours(kind, path, np.asarray(tensors[PREFIX + key], np.float32))
        for key, path in keys_of(kind).items()
    }
    params = unflatten_dict(flat, sep="/")
    if kind != "segmentation":
        return params, None
    return params, Statistics(*(tensors[f"{PREFIX}bn.{name}"] for name in _STATISTICS))


def to_released(
    params: Mapping[str, Any], kind: str, statistics: Statistics | None = None
) -> dict[str, np.ndarray]:
    """Converts our parameters back to the released layout."""
    flat = flatten_dict(params, sep="/")
    out = {
        PREFIX + key: _to_theirs(kind, path, np.asarray(flat[path]))
        for key, path in keys_of(kind).items()
    }
    if statistics is not None:
        kinds = np.float32, np.float32, np.int64
        for name, value, dtype in zip(_STATISTICS, statistics, kinds, strict=True):
            out[f"{PREFIX}bn.{name}"] = np.asarray(value, dtype)
    return out


def _is_transposed(path: str) -> bool:
    return path in ("resize_layers_0/kernel", "resize_layers_1/kernel")


def _to_ours(kind: str, path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel") or _is_transposed(path):
        return value
    if value.ndim == 4 and kind != "depth_dpt":
        if value.shape[2:] != (1, 1):
            raise ValueError(f"a convolution of {value.shape[2:]} in place of 1 x 1")
        value = value[:, :, 0, 0]
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def _to_theirs(kind: str, path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel") or _is_transposed(path):
        return value
    value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
    return value[:, :, None, None] if kind != "depth_dpt" else value
