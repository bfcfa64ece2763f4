"""The training loop, read top to bottom: pictures -> batches -> steps -> checkpoints -> report."""

import contextlib
import time
from collections.abc import Iterator, Mapping
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
from dinov2_jax.run.files import write_json
from dinov2_jax.run.interrupt import StopRequest
from dinov2_jax.run.lock import locked
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.nonfinite import NonFiniteLoss
from dinov2_jax.train.setup import (
    Family,
    abstract_batch,
    compiled_step,
    make_family,
    return_free_memory,
)
from dinov2_jax.train.start import describe, loading, open_pictures, start_states
from dinov2_jax.train.student_configs import student_configs
from dinov2_jax.train.students import Students, open_checkpoints, open_students
from dinov2_jax.train.teacher import open_teacher, place_teacher
from dinov2_jax.train.teacher_heads import FOLDER, heads_run, with_heads
from dinov2_jax.weights.load import Backbone


class _Open(NamedTuple):
    """What is open while a run trains, besides its states."""

    loader: TrainLoader
    students: Students
    bad: BadRecords
    stop: StopRequest
    frozen: tuple[Any, ...]  # the parameters of a frozen teacher, if there is one
    digest: dict[str, str]  # of these parameters, for checkpoints


class _Whole(NamedTuple):
    """A step whose states and place in the data are whole."""

    step: int
    states: dict[str, Any]
    position: dict[str, int]


def train(config: ConfigDict, workdir: str) -> None:
    """Trains to `config.total_steps`, from the newest checkpoint in `workdir` if there is one.

    With `config.distill` a frozen teacher gives the targets, for one student or several.

    Raises:
      UserError: with a sentence that says what to do.
    """
    notes = check_training(config, jax.device_count())
    folder = local_path(workdir, "--workdir")
    configs = student_configs(config)
    for name, own in configs.items():
        if name:
            notes += [f"{name}: {note}" for note in check_training(own, jax.device_count())]
    heads, weights = heads_run(config, next(iter(configs.values())))
    with locked(folder, wait=False):
        if heads is not None:
            about = check_training(heads, jax.device_count())
            if not _train(heads, {"": heads}, folder / FOLDER, about, weights):
                return
            config, weights = with_heads(config, folder), None
            configs = student_configs(config)
        _train(config, configs, folder, notes, weights)


def _train(
    config: ConfigDict,
    configs: Mapping[str, ConfigDict],
    folder: Path,
    notes: list[str],
    weights: Backbone | None = None,
) -> bool:
    """Trains to the last step; False after a signal to stop.

    Args:
      weights: of the teacher, or of `config.init_from` where there is none, if read already.
    """
    mesh = make_mesh(**config.mesh)
    share = local_groups(mesh, config.batch_size // config.group_size)
    source, bad = open_pictures(config, folder)
    notes += notes_of(source)
    teacher = open_teacher(config, configs, weights)
    notes += teacher.notes if teacher else []
    family = make_family(configs, mesh, teacher and teacher.networks)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stop = stack.enter_context(StopRequest(alone=jax.process_count() == 1))
        checkpoints = open_checkpoints(stack, configs, folder, source)
        newest = [own.latest_step() for own in checkpoints.values()]
        require_same(newest_checkpoint=str(newest))
        given = None if teacher else weights
        states, start, seen = start_states(configs, family, checkpoints, bad, teacher, notes, given)
        if is_main():
            write_json(folder / "config.json", to_dict(config))
        students = open_students(stack, configs, family, checkpoints, folder, start)
        for note in [*describe(config, len(source), mesh, start), *notes]:
            students.out.message(note)
        loader = stack.enter_context(loading(config, source, seen, share))
        stack.enter_context(end_when_lost())
        frozen = place_teacher(teacher, family.frozen)
        digest = {"teacher": teacher.digest} if teacher else {}
        opened = _Open(loader, students, bad, stop, frozen, digest)
        whole = _Whole(start, states, loader.state())
        try:
            for whole in _take_steps(config, family, opened, states, start):  # noqa: B007
                pass
        except NonFiniteLoss:  # the advice is to continue from the last checkpoint
            with contextlib.suppress(NonFiniteLoss):
                students.flush()  # how the loss came to this
            raise
        except Exception:
            if whole.step > start:
                _rescue(opened, whole)
            raise
    if stop.signal_name is None:
        with jax.set_mesh(mesh):
            students.report(whole.states, source, notes)
    return stop.signal_name is None


def _take_steps(
    config: ConfigDict, family: Family, opened: _Open, states: dict[str, Any], start: int
) -> Iterator[_Whole]:
    """Steps `start` + 1 to `total_steps`; yields after each what a failure must not lose."""
    mesh, (loader, students, bad, stop, frozen, _) = jax.sharding.get_mesh(), opened
    out, meter = students.out, students.meter
    out.message(students.which_probe)
    exchange = Exchange(mesh, lambda x: (bad.update(x), stop.agree(x["signal"])))
    began = time.monotonic()  # the loader's processes make the first batches meanwhile
    take_step = compiled_step(family, abstract_batch(config, mesh), mesh)
    return_free_memory()
    out.message(f"compiled the step in {time.monotonic() - began:.0f} s")
    if students.evaluated and start == 0:
        students.probe(0, states, stop.asked)
    for step in range(start + 1, config.total_steps + 1):
        last = step == config.total_steps
        if stop.signal_name and step == 1:
            out.message(f"{stop.signal_name}: ended before the first step; nothing is to be saved")
            break
        # The device has the two steps before still to do, because nothing of them is read until it
        # is given this one. So joining a batch and copying it, which runs by itself, cost it no
        # time. At most three batches are on the device.
        with meter:
            batch = next(loader)
        records = {name: batch.pop(name) for name in ("record", "bad_records")}
        exchange.send(**records, signal=np.array([stop.number]))
        out.warn(loader.take_warnings())
        if step == 1 and is_main():
            students.write_crops(batch)
        hyper = family.schedules.at(step - 1)
        states, metrics = take_step(states, put_batch(batch, mesh), hyper, *frozen)
        whole = _Whole(step, states, loader.state())
        yield whole
        students.add(step, batch, metrics, len(bad))
        probe_due = students.evaluated and (step % config.eval.every_steps == 0 or last)
        save_due = step % config.checkpoint.every_steps == 0 or last
        leaving = None
        if save_due or stop.signal_name:
            exchange.flush()
            students.flush()
            _save(opened, whole)
            leaving = stop.signal_name  # it may have come while this step was saved
        # After the save: reading all pictures of the probe may take longer than a scheduler waits.
        if probe_due and not leaving:
            students.probe(step, states, stop.asked)
            leaving = stop.signal_name
            if leaving:
                _save(opened, whole)
        if leaving:
            out.message(f"{leaving}: saved step {step}; the same command continues from there")
            break


def _save(opened: _Open, whole: _Whole) -> None:
    position = whole.position | opened.bad.state() | opened.digest
    opened.students.save(whole.step, whole.states, position)


def _rescue(opened: _Open, whole: _Whole) -> None:
    """Saves what is whole after a failure; several processes cannot agree on it then."""
    if jax.process_count() > 1:
        return
    out = opened.students.out
    try:
        with contextlib.suppress(OSError):  # the file of metrics may be what failed
            opened.students.flush()
        _save(opened, whole)
        opened.students.wait()
    except Exception as error:  # the failure itself counts: it is raised after this
        reason = sentence(error) or one_line(str(error))
        out.message(f"step {whole.step} could not be saved: {reason}")
    else:
        out.message(f"saved step {whole.step}; once mended, the same command continues from there")
