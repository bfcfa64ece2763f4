"""The training loop, read top to bottom: pictures -> batches -> steps -> checkpoints -> report."""

import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax import monitor
from dinov2_jax.checkpoint import CheckpointError, Checkpoints
from dinov2_jax.configuration import check_config, diff_configs, to_dict
from dinov2_jax.data.bad_records import BadRecords
from dinov2_jax.data.pipeline import TrainLoader
from dinov2_jax.data.sources import Source, open_source
from dinov2_jax.sharding import make_mesh, put_batch
from dinov2_jax.train.interrupt import StopRequest
from dinov2_jax.train.nonfinite import NonFiniteWatch
from dinov2_jax.train.probe import make_probe
from dinov2_jax.train.rundir import report, write_config, write_crop_sheet
from dinov2_jax.train.setup import Run, crop_spec, make_run, mask_spec


def train(config: ConfigDict, workdir: str) -> None:
    """Trains to `config.total_steps`, from the newest checkpoint in `workdir` if there is one.

    Raises:
      ConfigError, CheckpointError, FileNotFoundError, TooManyBadRecords, NonFiniteLoss: each says
        what to do.
    """
    notes = check_config(config, jax.device_count())
    folder, data, keep = Path(workdir).expanduser(), config.data, config.checkpoint
    source = open_source(data.source, data.path, split=data.split, cache_dir=data.cache_dir or None)
    bad = BadRecords(source, data.max_bad_fraction, folder / "skipped.txt", data.max_pixels)
    bad.preflight()
    mesh = make_mesh(**config.mesh)
    run = make_run(config, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stop = stack.enter_context(StopRequest())
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(folder, keep.keep_last, keep.keep_every_steps))
        )
        state, start = _start_state(config, run, checkpoints, source, bad, notes)
        write_config(folder, config)
        out = stack.enter_context(monitor.Output(folder, config.total_steps, start))
        for note in [*_describe(config, source, mesh, start), *notes]:
            out.message(note)
        loader = stack.enter_context(_loading(config, source, start))
        state = _run_steps(config, run, mesh, state, start, loader, checkpoints, bad, out, stop)
    if stop.signal_name is None:
        report(folder, config, run, state.teacher, source, [*notes, *out.warnings])
        print(f"report: {folder / 'report.html'}")


def _run_steps(
    config: ConfigDict,
    run: Run,
    mesh: Mesh,
    state: Any,
    start: int,
    loader: TrainLoader,
    checkpoints: Checkpoints,
    bad: BadRecords,
    out: monitor.Output,
    stop: StopRequest,
) -> Any:
    """The steps `start`.. of a run and what happens between them; returns the last state."""
    probe, which_knn = make_probe(config, run.objective.teacher.backbone)
    out.message(which_knn)
    health = monitor.HealthMonitor(config.dino.head_prototypes)
    nonfinite = NonFiniteWatch(out.folder)
    meter = monitor.Throughput(config.batch_size)

    def save(step: int) -> None:
        position = loader.state() | bad.state()
        checkpoints.save(step, state, loader=position, config=to_dict(config))

    if probe and start == 0:
        out.write(0, probe(state.teacher))
    meter.restart()
    for step in range(start + 1, config.total_steps + 1):
        with meter:
            batch = next(loader)
        bad.update(batch)
        if step == 1:
            write_crop_sheet(out.folder, config, batch)
        hyper = run.schedules.at(step - 1)
        state, metrics = run.step(state, put_batch(batch, mesh), hyper)
        meter.step()
        out.warn(nonfinite.add(step, batch, metrics))
        last = step == config.total_steps
        if step % config.log_every_steps == 0 or last:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            out.write(step, values | meter.read() | {"skipped_pictures": len(bad)})
            out.warn(health.check(values))
        out.progress.update(step)
        if probe and (step % config.eval.every_steps == 0 or last):
            out.write(step, probe(state.teacher))
            meter.restart()
        if step % config.checkpoint.every_steps == 0 or last or stop.signal_name:
            out.warn(nonfinite.check())
            save(step)
            meter.restart()
        if stop.signal_name:
            out.message(
                f"{stop.signal_name}: saved step {step}; the same command continues from there"
            )
            return state
    return state


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
        return run.init(), 0
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
    if state.step >= config.total_steps:
        notes.append(
            f"this run is complete: it has {state.step:,} steps; --config.total_steps trains on, "
            "another --workdir starts anew"
        )
    return state, loader["next_batch"]


def _loading(config: ConfigDict, source: Source, start: int) -> Any:
    loader = TrainLoader(
        source,
        crop_spec(config),
        mask_spec(config),
        batch_size=config.batch_size,
        group_size=config.group_size,
        seed=config.seed,
        workers=config.data.workers,
        max_pixels=config.data.max_pixels,
        start_batch=start,
    )
    return contextlib.closing(loader)


def _describe(config: ConfigDict, source: Source, mesh: Mesh, start: int) -> list[str]:
    passes = config.total_steps * config.batch_size / len(source)
    devices = f"{mesh.size} {jax.devices()[0].platform} device{'s' if mesh.size > 1 else ''}"
    lines = [
        f"{len(source):,} pictures from {config.data.source} {config.data.path}; "
        f"{config.total_steps:,} steps of {config.batch_size} are {passes:.1f} passes; {devices}"
    ]
    return lines + ([f"continuing from step {start}"] if start else [])
