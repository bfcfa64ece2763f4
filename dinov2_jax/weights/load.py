"""`load`: reads a backbone by name or path, from any of the formats in which it is published.

A tensor that is missing, left over or of another shape is an error, unless `allow` names it.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from dinov2_jax.config.checks import Range, Rules
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
from dinov2_jax.weights.hub import RELEASED, find, known_names, released_name
from dinov2_jax.weights.layouts import Flat, layout_of, to_reference_names
from dinov2_jax.weights.settings import check_config, stored_preprocessing, untold_fields
from dinov2_jax.weights.wrappers import split

# Modules of a backbone, of which no more than single tensors may be left over.
_PARTS = ("blocks", "norm", "patch_embed")
# Fields of the model that no tensor tells; our exports keep them.
UNTOLD = ("heads", "interpolate_offset", "interpolate_antialias")
# Ranges of the fields with which tasks read weights, see `load_configured`.
RULES: Rules = {
    "which": ("teacher", "student"),
    "heads": Range(0, 2**16),
    "interpolate_offset": Range(-1, 0.99),
    "interpolate_antialias": ("", "true", "false"),
}
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
    interpolate_offset: float | None = None,
    interpolate_antialias: bool | None = None,
    dtype: Any = None,
) -> Backbone:
    """Loads a backbone: see `dinov2_jax.load`, which has the same arguments and errors."""
    allow = (allow,) if isinstance(allow, str) else tuple(filter(None, allow))
    path = local_path(name_or_path, "weights")
    dtype = jnp.float32 if dtype is None else dtype
    released = released_name(str(name_or_path))
    if released and not path.exists():
        architecture = architecture or released
        path = find(released)
    if is_bundle(path):
        found = _from_bundle(path, dtype)
    elif is_run(path):
        found = _from_run(path, which, dtype)
    else:
        if not path.exists() and path.suffix == "" and _is_a_name(str(name_or_path)):
            raise WeightsError(
                f"{name_or_path!r} is neither a path nor one of {', '.join(RELEASED)}; did you "
                f"mean {nearest(str(name_or_path), list(known_names()))!r}?"
            )
        with blamed_on(path), _named(path):
            found = _from_tensors(read_tensors(path, which), which, heads, allow, dtype)
    if architecture:
        _require_architecture(found, architecture)
    _require_finite(found)
    return _interpolating(found, interpolate_offset, interpolate_antialias)


def is_run(path: Path) -> bool:
    """Whether this is the directory of a run, or of one of its checkpoints."""
    return any((path / name).is_dir() for name in ("checkpoints", "state"))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the path before what is wrong with the weights, where the message lacks it."""
    try:
        yield
    except WeightsError as error:
        if str(path) in str(error):
            raise
        raise WeightsError(f"{path}: {error}") from error


def _is_a_name(text: str) -> bool:
    """Whether this looks like a model's name, alone or after "facebook/" or "timm/"."""
    owner, _, name = text.rpartition("/")
    return bool(name) and owner in ("", "facebook", "timm", "hf_hub:timm", "hf-hub:timm")


def load_configured(config: ConfigDict, name_or_path: str, dtype: Any = None) -> Backbone:
    """Loads weights as the fields `which`, `heads`, `allow` and `interpolate_*` of a task say."""
    return load(
        name_or_path,
        which=config.which,
        heads=config.heads or None,
        allow=config.allow.split(","),
        interpolate_offset=None if config.interpolate_offset < 0 else config.interpolate_offset,
        interpolate_antialias={"true": True, "false": False}.get(config.interpolate_antialias),
        dtype=dtype,
    )


def _interpolating(found: Backbone, offset: float | None, antialias: bool | None) -> Backbone:
    """The backbone with another way to resample positions; None keeps its own."""
    if offset is None and antialias is None:
        return found
    model = found.model
    if antialias is None:
        antialias = model.interpolate_antialias and not offset
    if offset is None:
        offset = 0.0 if antialias else model.interpolate_offset
    if antialias and offset:
        raise WeightsError(
            f"interpolate_offset {offset} is not defined together with interpolate_antialias; set "
            "one of them"
        )
    if not (math.isfinite(offset) and 0 <= offset < 1):
        raise WeightsError(f"interpolate_offset is {offset}, but must be from 0 to below 1")
    model = model.clone(interpolate_offset=float(offset), interpolate_antialias=bool(antialias))
    note = f"as told, positions are resampled with offset {offset} and antialias {antialias}"
    return dataclasses.replace(found, model=model, report=(*found.report, note))


def _require_finite(found: Backbone) -> None:
    arrays = flatten_dict({"backbone": found.params, **found.heads}, sep="/")
    broken = [
        name
        for name, x in arrays.items()
        if isinstance(x, np.ndarray | jnp.ndarray) and not np.isfinite(x).all()
    ]
    if broken:
        raise WeightsError(
            f"{found.source} holds NaN or infinity in {len(broken)} tensors: {_some(broken)}; "
            "download it again, or take weights from before the training diverged"
        )


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
    stored: Tensors, which: str, heads: int | None, allow: tuple[str, ...], dtype: Any
) -> Backbone:
    source = str(stored.path)
    parts = split(stored.tensors, which, allow)
    layout = layout_of(set(parts.backbone))
    backbone, notes = to_reference_names(parts.backbone, layout)
    notes = [*parts.notes, *notes]
    known, more = _without_left_over(backbone, parts.left_over, allow, source)
    known, widened = _full_precision(known, allow, source)
    told = untold_fields(stored.settings)
    model = vision_transformer(known, told.pop("heads", None) or heads, dtype).clone(**told)
    if "mask_token" in allow:
        known.setdefault("mask_token", np.zeros((1, model.dim), np.float32))
    try:
        params = from_reference(known)
    except ValueError as error:
        raise WeightsError(f"{source}: {error}") from error
    report = _account(model, params, source, f"{layout} layout")
    exported = json.loads(stored.settings.get(EXPORTED, "{}"))
    own_heads: dict[str, Any] = read_heads(stored.path.parent) if exported else {}
    if "classifier" in parts.heads:
        classifier = parts.heads.pop("classifier")
        own_heads["classifier"] = released_head(classifier, model.dim, source, stored.settings)
    own_heads |= {name: from_reference(head) for name, head in parts.heads.items()}
    channels = in_channels(params, model.patch_size)
    notes += [*more, *widened, *check_config(stored.settings, model, channels, allow, source)]
    if exported:
        expected = Preprocessing(**tuples(exported["preprocessing"]))
    else:
        expected, more = stored_preprocessing(stored.folder, stored.settings, channels, allow)
        notes += more
    return Backbone(model, params, expected, own_heads, source, layout, (*report, *notes))


def _without_left_over(
    tensors: Flat, outside: Flat, allow: tuple[str, ...], source: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors with a place in a backbone, and a note on the others."""
    unknown = [*unknown_names(tensors), *outside]
    left_over = [name for name in unknown if not is_allowed(name, allow)]
    if left_over:
        raise WeightsError(
            f"{source} holds {len(left_over)} tensors that have no place in a DINOv2 backbone: "
            f"{_some(left_over)}; if they are not needed: {permission(allow, _modules(left_over))}"
        )
    notes = [f"left over, as allowed: {_some(unknown)}"] if unknown else []
    return {name: x for name, x in tensors.items() if name not in unknown}, notes


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
            only_mask = problem == "lacks" and names == ["mask_token"]
            remedy = f"; only pretraining needs it: {permission((), names)}" if only_mask else ""
            raise WeightsError(
                f"{source}, taken as a ViT of width {model.dim} and depth {model.depth}, {problem} "
                f"{len(names)} of {len(want)} tensors: {_some(names)}{remedy}"
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
