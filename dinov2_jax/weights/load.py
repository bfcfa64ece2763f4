"""`load`: reads a backbone by name or path, from any of the formats in which it is published.

A tensor that is missing, left over or of another shape is an error, unless `allow` names it.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dinov2_jax.config.files import local_path, nearest, tuples
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.models.vit import VARIANTS, VisionTransformer, from_config
from dinov2_jax.run.checkpoint import read_config, restore_params
from dinov2_jax.weights.architecture import expected_shapes, in_channels, vision_transformer
from dinov2_jax.weights.bundle import is_bundle, read_bundle
from dinov2_jax.weights.convert import from_reference, unknown_names
from dinov2_jax.weights.files import (
    EXPORTED,
    Tensors,
    WeightsError,
    blamed_on,
    is_allowed,
    permission,
    read_tensors,
)
from dinov2_jax.weights.heads import read_heads, released_head
from dinov2_jax.weights.hub import RELEASED, find, released_name
from dinov2_jax.weights.layouts import layout_of, rename, to_reference_names
from dinov2_jax.weights.settings import check_config, heads_of, stored_preprocessing

# Prefixes of the modules that training programs wrap around a model.
_WRAPPERS = ((r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.", ""),)


# Modules of a backbone, of which no more than single tensors may be left over.
_PARTS = ("blocks", "norm", "patch_embed")
# Kinds of numbers that `allow` may name; they become float32.
_PRECISIONS = ("float16", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone with its weights; `model, params = backbone` takes it apart.

    Attributes:
      model: the module; `model.apply({"params": params}, images)` gives features.
      params: fp32 parameters.
      preprocessing: sizes, mean and standard deviation that the weights expect.
      heads: heads by name: linear classifiers as {"weight", "bias", "metadata"} (see
        weights/heads.py), and projection heads as trees of parameters.
      source: file, directory or run.
      layout: "reference", "huggingface", "timm", "bundle" or "run".
      report: lines that say which tensors were found, and what was assumed.
    """

    model: VisionTransformer
    params: Any
    preprocessing: Preprocessing
    heads: Mapping[str, Any]
    source: str
    layout: str
    report: tuple[str, ...]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.params))


def load(
    name_or_path: str | Path,
    *,
    which: str = "teacher",
    architecture: str = "",
    heads: int | None = None,
    allow: Sequence[str] = (),
    dtype: Any = None,
) -> Backbone:
    """Loads a backbone: see `dinov2_jax.load`, which has the same arguments and errors."""
    path = local_path(name_or_path, "weights")
    dtype = jnp.float32 if dtype is None else dtype
    released = released_name(str(name_or_path))
    if released and not path.exists():
        architecture = architecture or released
        path = find(released)
    if is_bundle(path):
        found = _from_bundle(path, dtype)
    elif any((path / name).is_dir() for name in ("checkpoints", "state")):
        found = _from_run(path, which, dtype)
    else:
        if not path.exists() and path.suffix == "" and "/" not in str(name_or_path):
            raise WeightsError(
                f"{name_or_path!r} is neither a path nor one of {', '.join(RELEASED)}; did you "
                f"mean {nearest(str(name_or_path), list(RELEASED))!r}?"
            )
        with blamed_on(path):
            found = _from_tensors(read_tensors(path, which), heads, tuple(allow), dtype)
    if architecture:
        _require_architecture(found, architecture)
    return found


def _from_run(path: Path, which: str, dtype: Any) -> Backbone:
    stored, step_dir = read_config(path)
    model = from_config(stored["model"], stored["crops"]["global_size"], dtype=dtype)
    params = restore_params(step_dir, which)
    backbone = params.pop("backbone")
    sizes, colour = stored["eval"], stored["colour"]
    preprocessing = Preprocessing(
        sizes["resize_size"], sizes["image_size"], colour["mean"], colour["std"]
    )
    report = _account(model, backbone, str(step_dir), f"our run, {which}")
    return Backbone(model, backbone, preprocessing, params, str(step_dir), "run", report)


def _from_bundle(path: Path, dtype: Any) -> Backbone:
    fields, params, preprocessing = read_bundle(path)
    model = VisionTransformer(**fields, dtype=dtype)
    report = _account(model, params, str(path), "our bundle")
    heads = read_heads(path)
    return Backbone(model, params, preprocessing, heads, str(path), "bundle", report)


def _from_tensors(
    stored: Tensors, heads: int | None, allow: tuple[str, ...], dtype: Any
) -> Backbone:
    source = str(stored.path)
    parts = _split_modules({rename(name, _WRAPPERS): x for name, x in stored.tensors.items()})
    layout = layout_of(set(parts["backbone"]))
    backbone, notes = to_reference_names(parts.pop("backbone"), layout)
    known = _without_left_over(backbone, allow, source)
    known, more = _full_precision(known, allow, source)
    model = vision_transformer(known, heads_of(stored.settings) or heads, dtype)
    if "mask_token" in allow:
        known.setdefault("mask_token", np.zeros((1, model.dim), np.float32))
    try:
        params = from_reference(known)
    except ValueError as error:
        raise WeightsError(f"{source}: {error}") from error
    report = _account(model, params, source, f"{layout} layout")
    exported = json.loads(stored.settings.get(EXPORTED, "{}"))
    own_heads: dict[str, Any] = read_heads(stored.path.parent) if exported else {}
    if "classifier" in parts:
        classifier = parts.pop("classifier")
        own_heads["classifier"] = released_head(classifier, model.dim, source, stored.settings)
    own_heads |= {name: from_reference(head) for name, head in parts.items()}
    channels = in_channels(params, model.patch_size)
    notes += [*more, *check_config(stored.settings, model, channels, allow, source)]
    if exported:
        expected = Preprocessing(**tuples(exported["preprocessing"]))
    else:
        expected, more = stored_preprocessing(stored.folder, stored.settings, channels, allow)
        notes += more
    return Backbone(model, params, expected, own_heads, source, layout, (*report, *notes))


def _split_modules(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Splits a training checkpoint or a classifier: {"backbone": ..., "dino_head": ...}."""
    parts: dict[str, dict[str, np.ndarray]] = {"backbone": {}}
    for name, value in tensors.items():
        found = re.match(r"(backbone|dino_head|ibot_head|classifier)\.(.+)", name)
        module, rest = (found[1], found[2]) if found else ("backbone", name)
        parts.setdefault(module, {})[rest] = value
    return parts


def _without_left_over(
    tensors: Mapping[str, np.ndarray], allow: tuple[str, ...], source: str
) -> dict[str, np.ndarray]:
    unknown = unknown_names(tensors)
    left_over = [name for name in unknown if not is_allowed(name, allow)]
    if left_over:
        raise WeightsError(
            f"{source} holds {len(left_over)} tensors that have no place in a DINOv2 backbone: "
            f"{_some(left_over)}; if they are not needed: {permission(allow, _modules(left_over))}"
        )
    return {name: x for name, x in tensors.items() if name not in unknown}


def _full_precision(
    tensors: Mapping[str, np.ndarray], allow: tuple[str, ...], source: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    kinds = sorted({x.dtype.name for x in tensors.values()} - {"float32"})
    broken = [kind for kind in kinds if kind not in _PRECISIONS]
    if broken:
        raise WeightsError(
            f"{source} holds {', '.join(broken)} instead of float32, as quantised weights do; take "
            "the weights from before that"
        )
    refused = [kind for kind in kinds if kind not in allow]
    if refused:
        raise WeightsError(
            f"{source} holds {', '.join(refused)} and not float32, so its features would differ "
            f"from the released ones; to load them as they are: {permission(allow, refused)}"
        )
    notes = [f"stored as {', '.join(kinds)}: widened to float32"] if kinds else []
    return {name: np.asarray(x, np.float32) for name, x in tensors.items()}, notes


def _account(model: VisionTransformer, params: Any, source: str, kind: str) -> tuple[str, ...]:
    """Compares names and shapes with the model's; returns the line of the report."""
    want = flatten_dict(expected_shapes(model, in_channels(params, model.patch_size)), sep="/")
    have = flatten_dict(params, sep="/")
    problems = {
        "lacks": [name for name in want if name not in have],
        "has no place for": [name for name in have if name not in want],
        "differs in": [
            f"{name} {have[name].shape} instead of {wanted.shape}"
            for name, wanted in want.items()
            if name in have and have[name].shape != wanted.shape
        ],
    }
    for problem, names in problems.items():
        if names:
            raise WeightsError(
                f"{source}, taken as a ViT of width {model.dim} and depth {model.depth}, {problem} "
                f"{len(names)} of {len(want)} tensors: {_some(names)}"
            )
    weights = sum(x.size for x in have.values())
    return (f"{len(want)} of {len(want)} tensors, {weights:,} weights from {source} ({kind})",)


def _modules(names: Sequence[str]) -> list[str]:
    """The modules that hold these tensors; a tensor by its own name where a module is needed."""
    outer = {name: name.split(".")[0] for name in names}
    return sorted({name if module in _PARTS else module for name, module in outer.items()})


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _require_architecture(found: Backbone, name: str) -> None:
    if name not in RELEASED:
        raise WeightsError(f"{name!r} is not one of {', '.join(RELEASED)}")
    want, model = RELEASED[name], found.model
    variant = VARIANTS[want.variant]
    wanted = (variant.dim, variant.depth, want.ffn, want.registers)
    held = (model.dim, model.depth, model.ffn, model.registers)
    if wanted != held:
        text = "width {}, depth {}, {}, {} registers"
        raise WeightsError(
            f"{found.source} is not {name}: it has {text.format(*held)} instead of "
            f"{text.format(*wanted)}"
        )
