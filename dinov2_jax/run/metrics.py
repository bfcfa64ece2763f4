"""Metrics of a run: metrics.jsonl, TensorBoard events and the console."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dinov2_jax.run.files import naming, write_text
from dinov2_jax.run.progress import Progress

log = logging.getLogger("dinov2_jax")

METRICS_FILE = "metrics.jsonl"


class Output(contextlib.AbstractContextManager):
    """The output of a run: metrics.jsonl, TensorBoard events, progress and messages.

    `folder` is made if missing. Lines later than `start_step`, from which the run resumes, are cut,
    as these steps are repeated. `silent` prints and writes nothing; for all processes but one.
    Where several networks train at once, each has an output: `label` begins its lines, and all but
    the first are shown by the first one (`shown`).
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        start_step: int = 0,
        *,
        silent: bool = False,
        label: str = "",
        shown: "Output | None" = None,
    ) -> None:
        self.folder, self.warnings = folder, list[str]()
        self._total_steps, self._silent = total_steps, silent
        self._label, self._shown = label, shown
        if silent:
            return
        # A run that starts at 0 writes step 0 again; a resumed one has that line already.
        first_step = start_step + 1 if start_step else 0
        kept = [row for row in read_metrics(folder) if row["step"] < first_step]
        write_text(folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in kept))
        self._progress = shown._progress if shown else Progress(total_steps, start_step=start_step)
        self._file: IO[str] = open(folder / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115
        self._events = _open_events(folder, first_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Stores one line, if there are metrics; it is on disk when this returns."""
        if self._silent or not metrics:
            return
        values = {name: _number(value) for name, value in metrics.items()}
        # JSON has no NaN or infinity; null keeps every line valid.
        finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
        with naming(self.folder / METRICS_FILE):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
        if self._events is not None:
            self._events.add(step, values)
        line = console_line(step, self._total_steps, values)
        self.message(f"{self._label}  {line}" if self._label else line)

    def message(self, text: str) -> None:
        """Prints a line that is not stored."""
        if not self._silent:
            self._progress.write(text)

    def update(self, step: int) -> None:
        """Moves the progress bar."""
        if not self._silent:
            self._progress.update(step)

    def warn(self, messages: Sequence[str]) -> None:
        """Prints each message and keeps it for the report."""
        self.warnings += messages
        for message in messages:
            self.message(f"{self._label}: {message}" if self._label else message)

    def __exit__(self, *exception: object) -> None:
        if self._silent:
            return
        if self._shown is None:
            self._progress.close()
        try:
            with naming(self.folder / METRICS_FILE):
                self._file.close()
        finally:
            if self._events is not None:
                self._events.close()


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl, without lines that a kill or a bad disk damaged."""
    path = Path(workdir) / METRICS_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    rows = []
    for line in text.split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def console_line(step: int, total_steps: int, metrics: Mapping[str, float]) -> str:
    """One line to read: the loss, accuracies if there are any, then signs of health and speed."""
    shown = [name for name in metrics if name.endswith("_top1")]
    shown += ["lr", "health/teacher_entropy", "health/effective_rank"]
    parts = [f"step {step}/{total_steps}"]
    for name in ["loss", *shown, "images_per_s"]:
        if name in metrics:
            value = f"{metrics[name]:.1f}" if name.endswith("_top1") else f"{metrics[name]:.4g}"
            parts.append(f"{name.removeprefix('health/')} {value}")
    return "  ".join(parts)


class _Events:
    """TensorBoard's file of events.

    It is written at once: the thread of tensorboardX's own `SummaryWriter` ends at a full disk, and
    the run would then wait for it for ever.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._folder, self._event, self._scalar = folder, Event, scalar
        with naming(folder):
            self._file = EventsWriter(str(folder / "events"))
            # Hides the events of steps that a killed run wrote after its last checkpoint.
            log_start = SessionLog(status=SessionLog.START)
            for part in ({"file_version": "brain.Event:2"}, {"session_log": log_start}):
                self._file.write_event(Event(step=first_step, wall_time=time.time(), **part))
            self._file.flush()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Stores the values of a step; they are on disk when this returns."""
        with naming(self._folder):
            for name, value in values.items():
                summary, now = self._scalar(name, value), time.time()
                self._file.write_event(self._event(step=step, wall_time=now, summary=summary))
            self._file.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._file.close()


def _open_events(folder: Path, first_step: int) -> _Events | None:
    try:
        return _Events(folder, first_step)
    except ImportError:
        log.info("no TensorBoard events: pip install tensorboardX to get them")
        return None


def _number(value: Any) -> float | int:
    number = value if isinstance(value, int | float) else float(value)
    return int(number) if isinstance(number, bool) else number
