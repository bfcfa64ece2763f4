"""What happens before the first step: pictures are checked, the state is made or restored."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax import __version__
from dinov2_jax.config.files import diff_configs, leaves, to_dict
from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.loader import BatchSpec, CropSpec, MaskSpec, TrainLoader
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source
from dinov2_jax.parallel import runtime
from dinov2_jax.parallel.processes import is_main, main_first, require_same
from dinov2_jax.run.bad_records import BadRecords
from dinov2_jax.run.checkpoint import CheckpointError, Checkpoints
from dinov2_jax.train.from_run import first_parts
from dinov2_jax.train.setup import Family, Run
from dinov2_jax.train.teacher import Teacher
from dinov2_jax.weights.load import Backbone


def open_pictures(config: ConfigDict, folder: Path) -> tuple[Source, BadRecords]:
    """The training pictures, and the list of unreadable ones, of which a sample is decoded.

    Raises:
      SourceError, TooManyBadRecords
      ConfigError: the processes of the run do not see the same pictures.
    """
    data = config.data
    with main_first():
        source = open_source(
            data.source, data.path, split=data.split, cache_dir=data.cache_dir or None
        )
    settings = {k: v for k, v in leaves(config).items() if not k.startswith("distributed.")}
    names = [source.name(index) for index in (0, len(source) // 2, len(source) - 1)]
    require_same(
        configuration=str(settings), set_of_pictures=f"{len(source)} {names}", version=__version__
    )
    file = folder / "skipped.txt"
    bad = BadRecords(source, decode_spec(config), file, data.max_bad_fraction, writes=is_main())
    bad.preflight()
    return source, bad


class Started(NamedTuple):
    """The states at the start by name of the student, their step, and the pictures seen by then."""

    states: dict[str, Any]
    step: int
    seen: int


def start_states(
    configs: Mapping[str, ConfigDict],
    family: Family,
    checkpoints: Mapping[str, Checkpoints],
    bad: BadRecords,
    teacher: Teacher | None,
    notes: list[str],
    weights: Backbone | None = None,
) -> Started:
    """Fresh states, or those of the newest checkpoint; of several students, of one that all have.

    Args:
      bad: restored with the states.
      notes: gets a sentence on everything that the user should know about the start.
      weights: of `config.init_from`, if read already.

    Raises:
      ConfigError, WeightsError: `config.init_from` cannot be used.
      CheckpointError: the checkpoint cannot be read, or belongs to other pictures or to another
        teacher.
    """
    step = _common_step(checkpoints)
    states, position = {}, (0, 0)
    for name, config in configs.items():
        own: list[str] = []
        if step == 0:
            bad.load({})
            given, parts, origin = first_parts(config, family.runs[name], weights)
            own += origin
            states[name] = family.runs[name].init(given, parts)
        else:
            states[name], *position = _continued(
                config, family.runs[name], checkpoints[name], step, bad, teacher, own
            )
        notes += [f"{name}: {note}" if name else note for note in own]
    return Started(states, *position)


def _common_step(checkpoints: Mapping[str, Checkpoints]) -> int | None:
    """The step to continue from: 0 for none, None for the newest that can be read."""
    if len(checkpoints) == 1:
        return 0 if next(iter(checkpoints.values())).latest_step() is None else None
    step = max(set.intersection(*(own.steps() for own in checkpoints.values())), default=0)
    for own in checkpoints.values():
        own.forget_after(step)  # a killed run may have saved some students and not all
    return step


def _continued(
    config: ConfigDict,
    run: Run,
    checkpoints: Checkpoints,
    step: int | None,
    bad: BadRecords,
    teacher: Teacher | None,
    notes: list[str],
) -> tuple[Any, int, int]:
    """The state of a checkpoint, its step and the pictures seen."""
    state, loader, stored = checkpoints.restore(run.abstract_state, step, config=to_dict(config))
    notes.extend(checkpoints.notes)
    own = bad.state()
    pictures = own["pictures"]
    if loader.get("pictures", pictures) != pictures:
        raise CheckpointError(
            f"{checkpoints.directory} holds a run on {loader['pictures']:,} pictures of "
            f"{stored['data']['source']} {stored['data']['path']}, but {config.data.source} "
            f"{config.data.path} has {pictures:,}, so the order of pictures cannot continue; use "
            "another --workdir, or the same pictures (a text file can list them)"
        )
    if loader.get("names", own["names"]) != own["names"]:
        notes.append(
            f"pictures of {config.data.path} were renamed or replaced since step {state.step:,}: "
            "the run continues, in another order of pictures than it would have had"
        )
    bad.load(loader)
    _require_same_teacher(config, checkpoints, loader, teacher)
    changed = diff_configs(stored, to_dict(config))
    if changed:
        notes.append(f"the configuration differs from the checkpoint's: {', '.join(changed)}")
    if config.init_from:
        notes.append(
            f"config.init_from {config.init_from} is ignored: the run continues from its checkpoint"
        )
    if state.step >= config.total_steps:
        notes.append(
            f"this run is complete: it has {state.step:,} steps; a larger --config.total_steps "
            "continues it, another --workdir starts a new run"
        )
    # Checkpoints of version 0.1.0 count batches.
    seen = loader.get("next_image", loader.get("next_batch", 0) * stored["batch_size"])
    return state, int(state.step), seen


def _require_same_teacher(
    config: ConfigDict, checkpoints: Checkpoints, loader: dict[str, Any], teacher: Teacher | None
) -> None:
    before, now = loader.get("teacher", ""), teacher.digest if teacher else ""
    if before == now:
        return
    if not before or not now:
        kinds = [f"{'distillation' if digest else 'pretraining'}" for digest in (before, now)]
        raise CheckpointError(
            f"{checkpoints.directory} holds a run of {kinds[0]}, and this configuration is of "
            f"{kinds[1]}; use another --workdir"
        )
    raise CheckpointError(
        f"{checkpoints.directory} holds a student of other weights than those of "
        f"config.distill.teacher {config.distill.teacher}; give its teacher (a run that went on is "
        "another one: name the step's directory), or use another --workdir"
    )


def batch_spec(config: ConfigDict) -> BatchSpec:
    """Decoding, crops, masks and sizes of a batch for the loader."""
    ibot = config.ibot
    return BatchSpec(
        crops=CropSpec(**config.crops),
        masks=MaskSpec(config.model.patch_size, ibot.mask_probability, ibot.mask_ratio),
        decoding=decode_spec(config),
        batch_size=config.batch_size,
        group_size=config.group_size,
        seed=config.seed,
    )


def decode_spec(config: ConfigDict) -> DecodeSpec:
    """Which pictures are read, and with how many channels."""
    return DecodeSpec(config.data.max_pixels, config.model.in_channels)


def loading(
    config: ConfigDict, source: Source, start_image: int, share: list[int]
) -> contextlib.closing[TrainLoader]:
    """The loader of a run that has seen `start_image` pictures, in a context that closes it.

    Args:
      share: the groups of a batch that this process loads.
    """
    loader = TrainLoader(
        source,
        batch_spec(config),
        workers=config.data.workers,
        start_image=start_image,
        share=share,
    )
    return contextlib.closing(loader)


def describe(config: ConfigDict, pictures: int, mesh: Mesh, start: int) -> list[str]:
    """The first lines of a run's output; scripts read the start of the first one."""
    passes = config.total_steps * config.batch_size / pictures
    devices = f"{mesh.size} {jax.devices()[0].platform} device{'s' if mesh.size > 1 else ''}"
    if jax.process_count() > 1:
        devices += (
            f" in {jax.process_count()} processes; if one dies, the others end within about "
            f"{config.distributed.heartbeat_s} s and the same command continues"
        )
    lines = [
        f"{pictures:,} pictures from {config.data.source} {config.data.path}; "
        f"{config.total_steps:,} steps of {config.batch_size} are {passes:.1f} passes; {devices}"
    ]
    frozen = config.optimizer.freeze_backbone_steps
    if start < frozen:
        lines.append(f"only the heads train until step {frozen:,}")
    lines += runtime.describe()
    return lines + ([f"continuing from step {start}"] if start else [])
