"""The training loop, read top to bottom: pictures -> batches -> steps -> checkpoints -> report."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.config.files import local_path, to_dict
from dinov2_jax.data.loader import TrainLoader
from dinov2_jax.data.sources.source import notes_of
from dinov2_jax.errors import one_line, sentence
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import local_groups, put_batch
from dinov2_jax.parallel.processes import Exchange, end_when_lost, is_main, require_same
from dinov2_jax.run.bad_records import BadRecords
from dinov2_jax.run.checkpoint import Checkpoints
from dinov2_jax.run.files import write_json
from dinov2_jax.run.interrupt import StopRequest
from dinov2_jax.run.lock import locked
from dinov2_jax.run.metrics import Output
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.nonfinite import NonFiniteLoss
from dinov2_jax.train.probe import make_probe
from dinov2_jax.train.report import report, write_crop_sheet
from dinov2_jax.train.setup import (
    Run,
    abstract_batch,
    compiled_step,
    make_run,
    return_free_memory,
)
from dinov2_jax.train.start import describe, loading, open_pictures, start_state
from dinov2_jax.train.step_log import StepLog, Taken


class _Open(NamedTuple):
    """What is open while a run trains, besides its state."""

    loader: TrainLoader
    checkpoints: Checkpoints
    bad: BadRecords
    out: Output
    log: StepLog
    stop: StopRequest


class _Whole(NamedTuple):
    """A step whose state and place in the data are whole."""

    step: int
    state: Any
    position: dict[str, int]


def train(config: ConfigDict, workdir: str) -> None:
    """Trains to `config.total_steps`, from the newest checkpoint in `workdir` if there is one.

    Raises:
      UserError: with a sentence that says what to do.
    """
    notes = check_training(config, jax.device_count())
    folder = local_path(workdir, "--workdir")
    with locked(folder, wait=False):
        _train(config, folder, notes)


def _train(config: ConfigDict, folder: Path, notes: list[str]) -> None:
    keep = config.checkpoint
    mesh = make_mesh(**config.mesh)
    share = local_groups(mesh, config.batch_size // config.group_size)
    source, bad = open_pictures(config, folder)
    notes += notes_of(source)
    run = make_run(config, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stop = stack.enter_context(StopRequest(alone=jax.process_count() == 1))
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(folder, keep.keep_last, keep.keep_every_steps))
        )
        require_same(newest_checkpoint=str(checkpoints.latest_step()))
        state, start, seen = start_state(config, run, checkpoints, bad, notes)
        if is_main():
            write_json(folder / "config.json", to_dict(config))
        out = stack.enter_context(Output(folder, config.total_steps, start, silent=not is_main()))
        for note in [*describe(config, len(source), mesh, start), *notes]:
            out.message(note)
        loader = stack.enter_context(loading(config, source, seen, share))
        stack.enter_context(end_when_lost())
        log = StepLog(config, out, start)
        opened = _Open(loader, checkpoints, bad, out, log, stop)
        whole = _Whole(start, state, loader.state())
        try:
            for whole in _take_steps(config, run, opened, state, start):  # noqa: B007
                pass
        except NonFiniteLoss:  # the advice is to continue from the last checkpoint
            with contextlib.suppress(NonFiniteLoss):
                log.flush()  # how the loss came to this
            raise
        except Exception:
            if whole.step > start:
                _rescue(config, opened, whole)
            raise
    if stop.signal_name is None:
        with jax.set_mesh(mesh):
            report(folder, config, run, whole.state.teacher, source, [*notes, *out.warnings])


def _take_steps(
    config: ConfigDict, run: Run, opened: _Open, state: Any, start: int
) -> Iterator[_Whole]:
    """Steps `start` + 1 to `total_steps`; yields after each what a failure must not lose."""
    mesh, (loader, _, bad, out, log, stop) = jax.sharding.get_mesh(), opened
    probe, which_probe = make_probe(config, run.objective.teacher.backbone, out.folder)
    out.message(which_probe)
    exchange = Exchange(mesh, lambda x: (bad.update(x), stop.agree(x["signal"])))
    began = time.monotonic()  # the loader's processes make the first batches meanwhile
    take_step = compiled_step(run, abstract_batch(config, mesh), mesh)
    return_free_memory()
    out.message(f"compiled the step in {time.monotonic() - began:.0f} s")
    if probe and start == 0:
        out.write(0, probe(state.teacher, stop.asked))
    for step in range(start + 1, config.total_steps + 1):
        last = step == config.total_steps
        if stop.signal_name and step == 1:
            out.message(f"{stop.signal_name}: ended before the first step; nothing is to be saved")
            break
        # The device has the two steps before still to do, because nothing of them is read until it
        # is given this one. So joining a batch and copying it, which runs by itself, cost it no
        # time. At most three batches are on the device.
        with log.meter:
            batch = next(loader)
        records = {name: batch.pop(name) for name in ("record", "bad_records")}
        exchange.send(**records, signal=np.array([stop.number]))
        out.warn(loader.take_warnings())
        if step == 1 and is_main():
            write_crop_sheet(out.folder, config, batch)
        state, metrics = take_step(state, put_batch(batch, mesh), run.schedules.at(step - 1))
        whole = _Whole(step, state, loader.state())
        yield whole
        log.add(Taken(step, batch, metrics, len(bad)))
        out.update(step)
        probe_due = probe and (step % config.eval.every_steps == 0 or last)
        save_due = step % config.checkpoint.every_steps == 0 or last
        leaving = None
        if save_due or stop.signal_name:
            exchange.flush()
            log.flush()
            _save(config, opened, whole)
            log.meter.restart()
            leaving = stop.signal_name  # it may have come while this step was saved
        # After the save: reading all pictures of the probe may take longer than a scheduler waits.
        if probe and probe_due and not leaving:
            log.flush()
            out.write(step, probe(state.teacher, stop.asked))
            log.meter.restart()
            leaving = stop.signal_name
            if leaving:
                _save(config, opened, whole)
        if leaving:
            out.message(f"{leaving}: saved step {step}; the same command continues from there")
            break


def _save(config: ConfigDict, opened: _Open, whole: _Whole) -> None:
    loader = whole.position | opened.bad.state()
    opened.checkpoints.save(whole.step, whole.state, loader=loader, config=to_dict(config))


def _rescue(config: ConfigDict, opened: _Open, whole: _Whole) -> None:
    """Saves what is whole after a failure; several processes cannot agree on it then."""
    if jax.process_count() > 1:
        return
    try:
        with contextlib.suppress(OSError):  # the file of metrics may be what failed
            opened.log.flush()
        _save(config, opened, whole)
        opened.checkpoints.wait()
    except Exception as error:  # the failure itself counts: it is raised after this
        reason = sentence(error) or one_line(str(error))
        opened.out.message(f"step {whole.step} could not be saved: {reason}")
    else:
        opened.out.message(
            f"saved step {whole.step}; once mended, the same command continues from there"
        )
