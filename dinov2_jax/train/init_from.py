"""`config.init_from`: a fresh run that starts from weights instead of random numbers.

With `config.init_state` other than "teacher", it goes on with another run: see train/from_run.py.

The configured model must equal the model of the weights, and is never taken from them. So the
configuration alone tells a reader, an evaluation or a resumed run what the run trains, and no field
of the command line is overruled in silence. The error message lists all differences and the flags
that remove them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError
from dinov2_jax.models.positions import CONVENTIONS
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


def initial_params(
    config: ConfigDict, run: Run, weights: Backbone | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The modules that `config.init_from` gives, and notes on where each of them comes from.

    The position table is resampled to the size of the global crops (see `fitted`), and the patch
    embedding is spread over `config.model.in_channels`. Heads are used if the weights have them in
    the configured shape. Loss centres start at 0 anyway. `weights` are those of init_from, if read
    already.

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
    weights = read_backbone(config, model, config.init_from, given=weights)
    heads, notes = matching_heads(weights.heads, run.abstract_state.student)
    if not weights.heads.keys() & run.abstract_state.student.keys():
        notes.append(_headless(config))
    given = {"backbone": fitted(config, model, weights)} | heads
    wanted = {name: run.abstract_state.student[name] for name in given}
    notes = [*origin(config, weights, "student and teacher start"), *notes]
    notes += positions_note(config, model, weights)
    return jax.tree.map(place, given, wanted), notes


def read_backbone(
    config: ConfigDict,
    model: VisionTransformer,
    source: str,
    which: str = "teacher",
    given: Backbone | None = None,
) -> Backbone:
    """The weights of `source`, whose positions are resampled as `model` does where allowed.

    Args:
      given: these weights, if read already.

    Raises:
      ConfigError: they belong to another model than the configured one.
      WeightsError, CheckpointError: they cannot be read.
    """
    # Not every width tells the number of heads; then the configured number fills in.
    fallback, allow = model.heads if model.dim % HEAD_DIM else None, config.allow.split(",")
    if given is None:
        with main_first():  # it downloads weights that are given by name
            given = load(source, which=which, heads=fallback, allow=allow)
    weights = given
    own = {name: getattr(model, name) for name in _POSITIONS if name in allow}
    weights = dataclasses.replace(weights, model=weights.model.clone(**own))
    _require_same_model(config, model, weights)
    return weights


def fitted(config: ConfigDict, model: VisionTransformer, weights: Backbone) -> dict[str, Any]:
    """The weights' backbone with the positions and channels of the configured `model`.

    By `config.init_positions` "model", the table is the one that the old network computes at the
    new size, so its features of that size stay the same.
    """
    rule = CONVENTIONS.get(config.init_positions)
    params = with_image_size(weights.params, weights.model, model.image_size, rule)
    return with_channels(params, model.patch_size, config.model.in_channels)


def positions_note(config: ConfigDict, model: VisionTransformer, weights: Backbone) -> list[str]:
    """A sentence on how positions were resampled, if they were."""
    old = round((weights.params["pos_embed"].shape[1] - 1) ** 0.5)
    new, held = model.table_grid()[0], weights.model
    if old == new:
        return []
    own = held.interpolate_offset, held.interpolate_antialias
    if CONVENTIONS.get(config.init_positions, own) == own:
        how = "as the network does it, so that its features at this size stay the same"
    else:
        how = f"by {config.init_positions!r}, which changes the network's features at this size"
    return [f"positions of {old} x {old} patches are resampled to {new} x {new} {how}"]


def _headless(config: ConfigDict) -> str:
    """What weights without heads lack, and the field that keeps it from doing harm."""
    steps, field = config.optimizer.freeze_backbone_steps, "config.optimizer.freeze_backbone_steps"
    if steps:
        remedy = f"{field} {steps:,} lets the heads train alone for so long"
    else:
        likely = max(1, config.total_steps // 10)
        remedy = f"--{field}={likely} would let the heads train alone for so long"
    return (
        "the weights hold a backbone only: heads start random and loss centres at 0, student and "
        f"teacher are alike, and random heads send random gradients into the backbone; {remedy}"
    )


def origin(config: ConfigDict, weights: Backbone, who: str) -> list[str]:
    """Where the backbone comes from, and how its pictures differed from those of this run.

    Args:
      who: subject and verb of the first sentence.
    """
    first, *more = weights.report
    notes = [f"{who} from {first}", *more]
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


def matching_heads(
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
    values = model_fields(config, held, names)
    return [f"--config.model.{name}={str(value).lower()}" for name, value in values.items()]


def model_fields(
    config: ConfigDict, held: VisionTransformer, names: set[str] | None = None
) -> dict[str, Any]:
    """Fields of config.model that make it the model `held`; of `names` alone, where given."""
    names = {*_SIZES, *_FIELDS, "layerscale"} if names is None else names
    values: dict[str, Any] = {}
    if names & set(_SIZES):
        values |= _size_fields(config, held)
    values |= {name: getattr(held, name) for name in _FIELDS if name in names}
    if "layerscale" in names:
        values["layerscale"] = 0.0 if held.layerscale is None else 1e-5
    return values


def _size_fields(config: ConfigDict, held: VisionTransformer) -> dict[str, Any]:
    """Fields for width, depth and heads of the weights: a variant's name if one fits."""
    sizes = Variant(held.dim, held.depth, held.heads)
    for name, variant in VARIANTS.items():
        if variant == sizes:
            return {"variant": name} | {field: 0 for field in _SIZES if config.model[field]}
    return {field: getattr(held, field) for field in _SIZES}
