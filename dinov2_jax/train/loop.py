"""The training loop, read top to bottom: pictures -> batches -> steps -> checkpoints -> report."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax import __version__
from dinov2_jax.config.files import diff_configs, leaves, to_dict
from dinov2_jax.data.loader import TrainLoader
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import local_groups, put_batch
from dinov2_jax.parallel.processes import (
    Exchange,
    end_when_lost,
    is_main,
    main_first,
    own_name,
    require_same,
)
from dinov2_jax.run.bad_records import BadRecords
from dinov2_jax.run.checkpoint import CheckpointError, Checkpoints
from dinov2_jax.run.health import HealthMonitor
from dinov2_jax.run.interrupt import StopRequest
from dinov2_jax.run.metrics import Output
from dinov2_jax.run.progress import Throughput
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.init_from import initial_params
from dinov2_jax.train.nonfinite import NonFiniteWatch
from dinov2_jax.train.probe import make_probe
from dinov2_jax.train.report import report, write_config, write_crop_sheet
from dinov2_jax.train.setup import Run, batch_spec, decode_spec, make_run, return_free_memory


def train(config: ConfigDict, workdir: str) -> None:
    """Trains to `config.total_steps`, from the newest checkpoint in `workdir` if there is one.

    Raises:
      ConfigError, CheckpointError, WeightsError, FileNotFoundError, TooManyBadRecords,
        NonFiniteLoss: each says what to do.
    """
    notes = check_training(config, jax.device_count())
    folder, keep = Path(workdir).expanduser(), config.checkpoint
    mesh = make_mesh(**config.mesh)
    share = local_groups(mesh, config.batch_size // config.group_size)
    source, bad = _open_pictures(config, folder)
    run = make_run(config, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stop = stack.enter_context(StopRequest(alone=jax.process_count() == 1))
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(folder, keep.keep_last, keep.keep_every_steps))
        )
        require_same(newest_checkpoint=str(checkpoints.latest_step()))
        state, start = _start_state(config, run, checkpoints, source, bad, notes)
        write_config(folder, config)
        out = Output(folder, config.total_steps, start, silent=not is_main())
        stack.enter_context(out)
        for note in [*_describe(config, source, mesh, start), *notes]:
            out.message(note)
        loader = stack.enter_context(loading(config, source, start, share))
        stack.enter_context(end_when_lost())
        state = _run_steps(config, run, mesh, state, start, loader, checkpoints, bad, out, stop)
    if stop.signal_name is None:
        with jax.set_mesh(mesh):
            report(folder, config, run, state.teacher, source, [*notes, *out.warnings])


def _run_steps(
    config: ConfigDict,
    run: Run,
    mesh: Mesh,
    state: Any,
    start: int,
    loader: TrainLoader,
    checkpoints: Checkpoints,
    bad: BadRecords,
    out: Output,
    stop: StopRequest,
) -> Any:
    """The steps `start`.. of a run and what happens between them; returns the last state."""
    probe, which_knn = make_probe(config, run.objective.teacher.backbone)
    out.message(which_knn)
    health = HealthMonitor(config.dino.head_prototypes)
    nonfinite = NonFiniteWatch(out.folder, name=own_name())
    meter = Throughput(config.batch_size)

    def on_message(arrays: dict[str, np.ndarray]) -> None:
        bad.update(arrays)
        stop.agree(arrays["signal"])

    exchange = Exchange(mesh, on_message)

    def save(step: int) -> None:
        position = loader.state() | bad.state()
        checkpoints.save(step, state, loader=position, config=to_dict(config))

    if probe and start == 0:
        out.write(0, probe(state.teacher))
    meter.restart()
    for step in range(start + 1, config.total_steps + 1):
        with meter:
            batch = next(loader)
        seen = {name: batch.pop(name) for name in ("record", "bad_records")}
        exchange.send(**seen, signal=np.array([stop.number]))
        if step == 1 and is_main():
            write_crop_sheet(out.folder, config, batch)
        hyper = run.schedules.at(step - 1)
        state, metrics = run.step(state, put_batch(batch, mesh), hyper)
        if step == start + 1:
            return_free_memory()
        meter.step()
        out.warn(nonfinite.add(step, batch, metrics))
        last = step == config.total_steps
        if step % config.log_every_steps == 0 or last:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            out.write(step, values | meter.read() | {"skipped_pictures": len(bad)})
            out.warn(health.check(values))
        out.update(step)
        if probe and (step % config.eval.every_steps == 0 or last):
            out.write(step, probe(state.teacher))
            meter.restart()
        if step % config.checkpoint.every_steps == 0 or last or stop.signal_name:
            exchange.flush()
            out.warn(nonfinite.check())
            save(step)
            meter.restart()
        if stop.signal_name:
            out.message(
                f"{stop.signal_name}: saved step {step}; the same command continues from there"
            )
            return state
    return state


def _open_pictures(config: ConfigDict, folder: Path) -> tuple[Source, BadRecords]:
    """The pictures, looked over; the same ones in every process."""
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
    bad = BadRecords(
        source,
        decode_spec(config),
        folder / "skipped.txt",
        data.max_bad_fraction,
        writes=is_main(),
    )
    bad.preflight()
    return source, bad


def _start_state(
    config: ConfigDict,
    run: Run,
    checkpoints: Checkpoints,
    source: Source,
    bad: BadRecords,
    notes: list[str],
) -> tuple[Any, int]:
    """A fresh state, or the newest checkpoint; returns it with its step."""
    if checkpoints.latest_step() is None:
        bad.load({})
        given, origin = initial_params(config, run)
        notes.extend(origin)
        return run.init(given), 0
    state, loader, stored = checkpoints.restore(run.abstract_state, config=to_dict(config))
    if loader.get("pictures", len(source)) != len(source):
        raise CheckpointError(
            f"{checkpoints.directory} is of a run on {loader['pictures']:,} pictures of "
            f"{stored['data']['source']} {stored['data']['path']}, and now there are "
            f"{len(source):,} of {config.data.source} {config.data.path}, so their order cannot go "
            "on; use another --workdir, or the same pictures (a text file can list them)"
        )
    bad.load(loader)
    changed = diff_configs(stored, to_dict(config))
    if changed:
        notes.append(f"the configuration differs from the checkpoint's: {', '.join(changed)}")
    if config.init_from:
        notes.append(f"config.init_from {config.init_from} is not read: the checkpoint goes on")
    if state.step >= config.total_steps:
        notes.append(
            f"this run is complete: it has {state.step:,} steps; --config.total_steps trains on, "
            "another --workdir starts anew"
        )
    return state, loader["next_batch"]


def loading(
    config: ConfigDict, source: Source, start: int, share: list[int]
) -> contextlib.closing[TrainLoader]:
    """The loader of a run from batch `start` on, in a context that closes it.

    Args:
      share: the groups of a batch that this process loads.
    """
    loader = TrainLoader(
        source,
        batch_spec(config),
        workers=config.data.workers,
        start_batch=start,
        share=share,
    )
    return contextlib.closing(loader)


def _describe(config: ConfigDict, source: Source, mesh: Mesh, start: int) -> list[str]:
    passes = config.total_steps * config.batch_size / len(source)
    devices = f"{mesh.size} {jax.devices()[0].platform} device{'s' if mesh.size > 1 else ''}"
    if jax.process_count() > 1:
        devices += (
            f" in {jax.process_count()} processes; if one dies, the others end within about "
            f"{config.distributed.heartbeat_s} s and the same command continues"
        )
    lines = [
        f"{len(source):,} pictures from {config.data.source} {config.data.path}; "
        f"{config.total_steps:,} steps of {config.batch_size} are {passes:.1f} passes; {devices}"
    ]
    frozen = config.optimizer.freeze_backbone_steps
    if start < frozen:
        lines.append(f"only the heads train until step {frozen:,}")
    return lines + ([f"continuing from step {start}"] if start else [])
