"""The networks of a run while it trains: one, or the students of `config.distill.students`.

Each has a configuration, a run directory, checkpoints and metrics of its own, as if it were trained
alone. They share the pictures, the crops and the teacher's pass, and are always at the same step.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import Array
from ml_collections import ConfigDict

from dinov2_jax.config.files import to_dict
from dinov2_jax.data.sources.source import Source, provenance_of
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.run.checkpoint import Checkpoints
from dinov2_jax.run.files import write_json
from dinov2_jax.run.metrics import Output
from dinov2_jax.train.probe import Probe, make_probe
from dinov2_jax.train.report import report, write_crop_sheet
from dinov2_jax.train.setup import Family, Run
from dinov2_jax.train.step_log import StepLog, Taken


class Student(NamedTuple):
    """One network while it is trained. `name` is "" where it is the only one."""

    name: str
    config: ConfigDict
    run: Run
    checkpoints: Checkpoints
    out: Output
    log: StepLog
    probe: Probe | None


def open_checkpoints(
    stack: contextlib.ExitStack, configs: Mapping[str, ConfigDict], folder: Path, source: Source
) -> dict[str, Checkpoints]:
    """The checkpoints of each student, closed with `stack`; they say what made the pictures."""
    # With several, one may be a save ahead of the others when a run is killed.
    least = 1 if len(configs) == 1 else 2
    return {
        name: stack.enter_context(
            contextlib.closing(
                Checkpoints(
                    folder / name,
                    max(least, config.checkpoint.keep_last),
                    config.checkpoint.keep_every_steps,
                    provenance_of(source),
                )
            )
        )
        for name, config in configs.items()
    }


def open_students(
    stack: contextlib.ExitStack,
    configs: Mapping[str, ConfigDict],
    family: Family,
    checkpoints: Mapping[str, Checkpoints],
    folder: Path,
    start: int,
) -> "Students":
    """All students with their files open, at step `start`; closed with `stack`."""
    students: list[Student] = []
    which_probe = ""  # the same for all
    for name, config in configs.items():
        if is_main():
            write_json(folder / name / "config.json", to_dict(config))
        shown = students[0].out if students else None
        out = Output(
            folder / name, config.total_steps, start, silent=not is_main(), label=name, shown=shown
        )
        stack.enter_context(out)
        probe, which_probe = make_probe(config, family.runs[name].model, out.folder)
        log = StepLog(config, out, start)
        students.append(
            Student(name, config, family.runs[name], checkpoints[name], out, log, probe)
        )
    return Students(students, which_probe)


class Students:
    """All networks of a run; what is done to one is done to each.

    Attributes:
      which_probe: what the averages are evaluated on, or why they are not, in a sentence.
      out: of the first one, for messages that concern the whole run.
      meter: of waiting for batches; `restart` it after work that is not training.
    """

    def __init__(self, students: list[Student], which_probe: str) -> None:
        self._students, self.which_probe = students, which_probe
        self.out, self.meter = students[0].out, students[0].log.meter

    @property
    def evaluated(self) -> bool:
        """Whether the pictures have labels to evaluate with."""
        return self._students[0].probe is not None

    def probe(self, step: int, states: Mapping[str, Any], stopped: Callable[[], bool]) -> None:
        """Evaluates the average of each student and writes the accuracies."""
        self.flush()
        for student in self._students:
            if student.probe is not None:
                student.out.write(step, student.probe(states[student.name].teacher, stopped))
        self._restart()

    def add(
        self,
        step: int,
        batch: dict[str, np.ndarray],
        metrics: Mapping[str, Mapping[str, Array]],
        skipped_pictures: int,
    ) -> None:
        """Takes what a step measured; see `StepLog.add`."""
        for student in self._students:
            student.log.add(Taken(step, batch, metrics[student.name], skipped_pictures))
        self.out.update(step)

    def flush(self) -> None:
        """Waits for the device and writes what is due; see `StepLog.flush`."""
        for student in self._students:
            student.log.flush()

    def save(self, step: int, states: Mapping[str, Any], position: dict[str, Any]) -> None:
        """Saves each student in the background."""
        if len(self._students) > 1:
            self.wait()  # a student is at most one save ahead of another
        for student in self._students:
            student.checkpoints.save(
                step, states[student.name], loader=position, config=to_dict(student.config)
            )
        self._restart()

    def wait(self) -> None:
        """Returns when all saves are on disk."""
        for student in self._students:
            student.checkpoints.wait()

    def write_crops(self, batch: dict[str, np.ndarray]) -> None:
        """crops.png of each student."""
        for student in self._students:
            write_crop_sheet(student.out.folder, student.config, batch)

    def report(self, states: Mapping[str, Any], source: Source, notes: list[str]) -> None:
        """report.html of each student."""
        for student in self._students:
            teacher, out = states[student.name].teacher, student.out
            own = [*notes, *out.warnings]
            report(out.folder, student.config, student.run.model, teacher, source, own)

    def _restart(self) -> None:
        for student in self._students:
            student.log.meter.restart()
