"""`config.init_from`: a fresh run that starts from weights instead of random numbers.

The configured model must equal the model of the weights, and is never taken from them. So the
configuration alone tells a reader, an evaluation or a resumed run what the run trains, and no field
of the command line is overruled in silence. The error message lists all differences and the flags
that remove them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError
from dinov2_jax.models.vit import VARIANTS, Variant, VisionTransformer
from dinov2_jax.parallel.placement import place
from dinov2_jax.parallel.processes import main_first
from dinov2_jax.train.setup import Run
from dinov2_jax.weights.adapt import with_channels, with_image_size
from dinov2_jax.weights.architecture import HEAD_DIM, in_channels
from dinov2_jax.weights.load import Backbone, load

_SIZES = ("dim", "depth", "heads")
_POSITIONS = ("interpolate_offset", "interpolate_antialias")
# Further fields that must agree; the others, such as drop path, may differ.
_FIELDS = (
    "patch_size", "ffn", "registers", "interpolate_offset", "interpolate_antialias", "qkv_bias",
    "proj_bias", "ffn_bias",
)  # fmt: skip


def initial_params(config: ConfigDict, run: Run) -> tuple[dict[str, Any], list[str]]:
    """The modules that `config.init_from` gives, and notes on where each of them comes from.

    The position table is resampled to the size of the global crops, and the patch embedding is
    spread over `config.model.in_channels`. Heads are used if the weights have them in the
    configured shape. Loss centres start at 0 anyway.

    Returns:
      {"backbone"[, "dino_head"][, "ibot_head"]}, sharded like the student of `run`: only the host
      ever holds a whole copy. {} without init_from.

    Raises:
      ConfigError: the weights belong to another model than the configured one.
      WeightsError, CheckpointError: they cannot be read.
    """
    if not config.init_from:
        return {}, []
    model = run.objective.student.backbone
    # Not every width tells the number of heads; then the configured number fills in.
    fallback = model.heads if model.dim % HEAD_DIM else None
    with main_first():  # it downloads weights that are given by name
        weights = load(config.init_from, heads=fallback, allow=config.allow.split(","))
    weights = _with_own_positions(weights, model, config.allow.split(","))
    _require_same_model(config, model, weights)
    backbone = with_image_size(weights.params, weights.model, model.image_size)
    backbone = with_channels(backbone, model.patch_size, config.model.in_channels)
    heads, notes = _matching_heads(weights.heads, run.abstract_state.student)
    given = {"backbone": backbone} | heads
    wanted = {name: run.abstract_state.student[name] for name in given}
    return jax.tree.map(place, given, wanted), [*_origin(config, weights), *notes]


def _with_own_positions(
    weights: Backbone, model: VisionTransformer, allow: Sequence[str]
) -> Backbone:
    """The weights, whose positions are resampled as `model` does where `allow` says so."""
    own = {name: getattr(model, name) for name in _POSITIONS if name in allow}
    return dataclasses.replace(weights, model=weights.model.clone(**own))


def _origin(config: ConfigDict, weights: Backbone) -> list[str]:
    """Where the backbone comes from, and how its pictures differed from those of this run."""
    first, *more = weights.report
    notes = [f"student and teacher start from {first}", *more]
    held, channels = in_channels(weights.params, weights.model.patch_size), config.model.in_channels
    if held != channels:
        notes.append(f"the patch embedding of {held} channels is spread over {channels}")
    wanted = weights.preprocessing
    if held == channels and (wanted.mean, wanted.std) != (config.colour.mean, config.colour.std):
        notes.append(
            f"the weights were made with colour.mean {wanted.mean} and colour.std {wanted.std}, "
            f"which are {config.colour.mean} and {config.colour.std} here"
        )
    return notes


def _matching_heads(
    heads: Mapping[str, Any], student: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The heads that have the student's shapes, and a sentence on every head."""
    taken, notes = {}, []
    for name in sorted(student.keys() - {"backbone"}):
        wanted, held = _shapes(student[name]), _shapes(heads.get(name, {}))
        different = sorted(path for path in wanted | held if wanted.get(path) != held.get(path))
        if not held:
            notes.append(f"{name} is fresh: the weights come without it")
        elif different:
            path = different[0]
            notes.append(
                f"{name} is fresh: {path} of the weights is {held.get(path)}, the configured one "
                f"{wanted.get(path)}"
            )
        else:
            taken[name] = heads[name]
            notes.append(f"{name} is that of the weights")
    unused = sorted(heads.keys() - student.keys())
    return taken, notes + [f"{name} of the weights is not used" for name in unused]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(x.shape) for path, x in flatten_dict(tree, sep="/").items()}


def _require_same_model(config: ConfigDict, model: VisionTransformer, weights: Backbone) -> None:
    different = _differences(model, weights)
    if not different:
        return
    text = ", ".join(f"{name} {held} instead of {own}" for name, (held, own) in different.items())
    if "mlp_ratio" in different:
        remedy = "config.model has no field for mlp_ratio, so it needs other weights"
    else:
        remedy = f"add {' '.join(_flags(config, weights.model, set(different)))}"
    if different.keys() <= set(_POSITIONS):
        wanted = [*filter(None, config.allow.split(",")), *different]
        remedy += f"; to keep the configured ones: --config.allow={','.join(wanted)}"
    raise ConfigError(
        f"config.init_from {config.init_from} is of another model than config.model: {text}; "
        f"{remedy}"
    )


def _differences(model: VisionTransformer, weights: Backbone) -> dict[str, tuple[Any, Any]]:
    """{field: (value of the weights, configured value)} where they differ."""
    names = [*_SIZES, "mlp_ratio", *_FIELDS]
    # A single file does not tell the number of heads; at the same width the configured one counts.
    if weights.model.dim == model.dim and Path(weights.source).is_file():
        names.remove("heads")
    pairs = {name: (getattr(weights.model, name), getattr(model, name)) for name in names}
    pairs["layerscale"] = tuple(
        "off" if x.layerscale is None else "on" for x in (weights.model, model)
    )
    return {name: (held, own) for name, (held, own) in pairs.items() if held != own}


def _flags(config: ConfigDict, held: VisionTransformer, names: set[str]) -> list[str]:
    """Flags for the command line that make config.model the model `held`."""
    values: dict[str, Any] = {}
    if names & set(_SIZES):
        values |= _size_fields(config, held)
    values |= {name: getattr(held, name) for name in _FIELDS if name in names}
    if "layerscale" in names:
        values["layerscale"] = 0.0 if held.layerscale is None else 1e-5
    return [f"--config.model.{name}={str(value).lower()}" for name, value in values.items()]


def _size_fields(config: ConfigDict, held: VisionTransformer) -> dict[str, Any]:
    """Fields for width, depth and heads of the weights: a variant's name if one fits."""
    sizes = Variant(held.dim, held.depth, held.heads)
    for name, variant in VARIANTS.items():
        if variant == sizes:
            return {"variant": name} | {field: 0 for field in _SIZES if config.model[field]}
    return {field: getattr(held, field) for field in _SIZES}
