"""`config.init_state`: a fresh run that goes on with the student and teacher of another run.

A stage of training, such as the one at high resolution, starts this way. Step, schedules, order of
pictures and random numbers are fresh; nothing of the other run's directory is changed.
"""

from pathlib import Path
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, leaves, local_path
from dinov2_jax.models.positions import CONVENTIONS, resize_positions, resize_squares
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.parallel.placement import place
from dinov2_jax.run.checkpoint import read_config, restore_params
from dinov2_jax.train.init_from import (
    fitted,
    initial_params,
    matching_heads,
    origin,
    positions_note,
    read_backbone,
)
from dinov2_jax.train.setup import Run
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.hub import released_name
from dinov2_jax.weights.load import Backbone, is_run

_SIZES = ("head_prototypes", "head_bottleneck_dim", "head_layers", "head_hidden_dim")
_TEACHER = "--config.init_state=teacher"


def first_parts(
    config: ConfigDict, run: Run, weights: Backbone | None = None
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What `config.init_from` gives to a fresh state, as `config.init_state` says.

    Args:
      weights: of `config.init_from` for init_state "teacher", if read already.

    Returns:
      Modules of the student; other fields of the state ("teacher", "centers", "opt_state"), only if
      the run goes on with another one; and notes. All arrays are sharded like the state of `run`.

    Raises:
      ConfigError: init_from is no run, or a run of another model or other heads.
      WeightsError, CheckpointError: it cannot be read.
    """
    if config.init_state == "teacher":
        given, notes = initial_params(config, run, weights)
        return given, {}, notes
    stored, step_dir = read_config(_run_directory(config))
    _require_same_heads(config, leaves(stored), step_dir)
    wanted, notes = run.abstract_state, []
    models = run.objective.student.backbone, run.model
    sides: dict[str, Any] = {}
    # One after the other: the host never holds both.
    for side, model in zip(("student", "teacher"), models, strict=True):
        weights = read_backbone(config, model, str(step_dir), side)
        params = _whole(config, model, weights, getattr(wanted, side))
        sides[side] = jax.tree.map(place, params, getattr(wanted, side))
        notes += origin(config, weights, f"{side} starts") if side == "student" else []
    parts = {"teacher": sides["teacher"]}
    if wanted.centers:  # features have none
        parts["centers"] = jax.tree.map(place, restore_params(step_dir, "centers"), wanted.centers)
    kept = "teacher, heads and loss centres are those of that run, too"
    if config.init_state == "optimizer":
        moments = _moments(config, models[0], weights, step_dir)
        parts["opt_state"] = jax.tree.map(place, moments, wanted.opt_state)
        notes.append(f"{kept}, and so are Adam's moments")
    else:
        notes.append(f"{kept}; Adam's moments are fresh")
    return sides["student"], parts, notes + positions_note(config, models[0], weights)


def _run_directory(config: ConfigDict) -> Path:
    """The run that `config.init_from` names; anything else is refused."""
    field = f"config.init_state {config.init_state!r}"
    if not config.init_from:
        raise ConfigError(
            f"{field} goes on with another run, but config.init_from is empty; add "
            f"--config.init_from=<run directory>, or {_TEACHER} to start without one"
        )
    path = local_path(config.init_from, "config.init_from")
    if is_run(path):
        return path
    if path.exists():
        what = "is no run"
    elif released_name(config.init_from):
        what = "is a released backbone"
    else:
        what = "does not exist"
    raise ConfigError(
        f"{field} needs the directory of a run, which holds student, teacher, heads and loss "
        f"centres, but config.init_from {config.init_from} {what}; name a run, or add {_TEACHER} "
        "to start both from a backbone alone"
    )


def _require_same_heads(config: ConfigDict, stored: dict[str, Any], step_dir: Path) -> None:
    """The heads go on, so their sizes must be those of the run."""
    own = leaves(config)
    if own["distill.kind"] == "features":  # whose projections have the sizes of both networks
        return
    names = [f"dino.{size}" for size in _SIZES] + ["ibot.separate_head"]
    if stored["ibot.separate_head"]:
        names += [f"ibot.{size}" for size in _SIZES]
    different = [name for name in names if stored[name] != own[name]]
    if different:
        text = ", ".join(f"{name} {stored[name]} instead of {own[name]}" for name in different)
        flags = " ".join(f"--config.{name}={str(stored[name]).lower()}" for name in different)
        raise ConfigError(
            f"config.init_state {config.init_state!r} goes on with the heads of {step_dir}, which "
            f"have {text}; add {flags}, or {_TEACHER} for fresh heads"
        )


def _whole(config: ConfigDict, model: VisionTransformer, weights: Backbone, wanted: Any) -> Any:
    """All modules of one side, fitted to the configured sizes."""
    heads, notes = matching_heads(weights.heads, wanted)
    if heads.keys() != wanted.keys() - {"backbone"}:
        raise ConfigError(
            f"{weights.source} lacks heads that config.init_state {config.init_state!r} goes on "
            f"with: {'; '.join(notes)}; add {_TEACHER}"
        )
    return {"backbone": fitted(config, model, weights)} | heads


def _moments(
    config: ConfigDict, model: VisionTransformer, weights: Backbone, step_dir: Path
) -> optax.ScaleByAdamState:
    """Adam's moments of the run, those of the position table resampled like the table.

    The mean of gradients passes through the table's own linear map, and the mean of their squares
    through `resize_squares`, which is never negative.
    """
    held = in_channels(weights.params, model.patch_size)
    if held != config.model.in_channels:
        raise ConfigError(
            f"config.init_state 'optimizer' keeps Adam's moments of {held} channels, but "
            f"config.model.in_channels is {config.model.in_channels}; add --config.init_state=both"
        )
    stored = restore_params(step_dir, "opt_state")
    own = weights.model.interpolate_offset, weights.model.interpolate_antialias
    rule = CONVENTIONS.get(config.init_positions, own)
    for name, resize in {"mu": resize_positions, "nu": resize_squares}.items():
        backbone = stored[name]["backbone"]
        backbone["pos_embed"] = resize(backbone["pos_embed"], model.table_grid(), *rule)
    return optax.ScaleByAdamState(stored["count"], stored["mu"], stored["nu"])
