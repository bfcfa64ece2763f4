"""What a run tells while it runs: metrics, progress, throughput and signs of collapse."""

import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

log = logging.getLogger("dinov2_jax")

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Writes metrics to <workdir>/metrics.jsonl, to TensorBoard events and to the console.

    Args:
        workdir: the run directory; made if missing.
        total_steps: for the "step 10/1800" of the console line.
        start_step: the step resumed from; later lines, of steps that will be repeated, are cut.
        write_line: where a console line goes, e.g. `Progress.write`; by default stdout.
        tensorboard: False writes no event files.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        *,
        start_step: int = 0,
        write_line: Callable[[str], None] | None = None,
        tensorboard: bool = True,
    ) -> None:
        self.path = Path(workdir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._total_steps = total_steps
        self._write_line = write_line or (lambda line: print(line, flush=True))
        # A run that starts at 0 writes step 0 again; a resumed one has its step's lines already.
        first_step = start_step + 1 if start_step else 0
        cut_from(self.path, first_step)
        self._file: IO[str] = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._events = _event_writer(self.path.parent, first_step) if tensorboard else None

    def write(self, step: int, metrics: Mapping[str, Any], *, console: bool = True) -> None:
        """Stores one line; it is on disk, readable by others, when this returns."""
        values = {name: _number(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **_finite_or_null(values)}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if self._events is not None:
                self._events.add_scalar(name, value, step)
        if console:
            self._write_line(console_line(step, self._total_steps, values))

    def message(self, text: str) -> None:
        """A line for the reader only, such as a warning."""
        self._write_line(text)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl; one that a kill cut short is left out."""
    path = Path(workdir) / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def cut_from(path: Path, step: int) -> None:
    """Atomically drops the lines of `step` and later ones, and half a line left by a kill."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row["step"] < step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file that is whole or not there, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def console_line(step: int, total_steps: int, metrics: Mapping[str, float]) -> str:
    """One line for the eye: loss first, accuracies if there, then what tells how it goes."""
    shown = [name for name in metrics if name.endswith("_top1")]
    shown += ["lr", "health/teacher_entropy", "health/effective_rank"]
    parts = [f"step {step}/{total_steps}"]
    for name in ["loss", *shown, "images_per_s"]:
        if name in metrics:
            value = f"{metrics[name]:.1f}" if name.endswith("_top1") else f"{metrics[name]:.4g}"
            parts.append(f"{name.removeprefix('health/')} {value}")
    return "  ".join(parts)


def _event_writer(workdir: Path, first_step: int) -> Any:
    if importlib.util.find_spec("tensorboardX") is None:
        log.info("no TensorBoard events: pip install tensorboardX to get them")
        return None
    import tensorboardX

    # purge_step hides the events of steps that a killed run wrote after its last checkpoint.
    return tensorboardX.SummaryWriter(str(workdir), purge_step=first_step)


def _number(value: Any) -> float | int:
    number = value if isinstance(value, int | float) else float(value)
    return int(number) if isinstance(number, bool) else number


def _finite_or_null(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN or infinity; null keeps every line valid."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class Progress:
    """A bar with ETA on a terminal; elsewhere a plain line every `interval_s` seconds."""

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        interval_s: float = 30.0,
        stream: IO[str] | None = None,
        unit: str = "step",
    ) -> None:
        self._stream, self._unit = stream or sys.stderr, unit
        self._total, self._step, self._start = total_steps, start_step, start_step
        self._began = self._last_line = time.monotonic()
        self._interval_s = interval_s
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps, initial=start_step, file=self._stream, unit=unit,
                smoothing=0.1, dynamic_ncols=True,
            )  # fmt: skip

    def update(self, step: int, **shown: float) -> None:
        """Moves to `step`; `shown` are numbers to print beside it, such as loss."""
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)
            self._bar.update(step - self._step)
        elif time.monotonic() - self._last_line >= self._interval_s:
            self._last_line = time.monotonic()
            numbers = "".join(f"  {name} {value:.4g}" for name, value in shown.items())
            self.write(f"{self._unit} {step}/{self._total}  ETA {self._eta(step)}{numbers}")
        self._step = step

    def write(self, line: str) -> None:
        """A line that does not break the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _eta(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - self._began) / done * (self._total - step)
        return tqdm.format_interval(seconds)


class Throughput:
    """Images a second and the share of time spent waiting for data, since the last reading."""

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._batch_size, self._clock = batch_size, clock
        self._wait_began = 0.0
        self.restart()

    def restart(self) -> None:
        """Forgets the time so far; called after k-NN, which is no training time."""
        self._began, self._waited_s, self._steps = self._clock(), 0.0, 0

    def __enter__(self) -> "Throughput":
        """`with meter: batch = next(loader)` counts as waiting."""
        self._wait_began = self._clock()
        return self

    def __exit__(self, *exception: object) -> None:
        self._waited_s += self._clock() - self._wait_began

    def step(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        """{"images_per_s", "data_wait_share" (0..1)} and a new start."""
        elapsed_s = max(self._clock() - self._began, 1e-9)
        rates = {
            "images_per_s": self._steps * self._batch_size / elapsed_s,
            "data_wait_share": min(1.0, self._waited_s / elapsed_s),
        }
        self.restart()
        return rates


class HealthMonitor:
    """Plain-language warnings, each given once, when the representation shows a sign of collapse.

    Args:
        prototypes: K of the DINO head; the entropy of a uniform target is log K.
        patience: readings in a row that must agree, so that the first steps raise no alarm.
    """

    def __init__(self, prototypes: int, patience: int = 20) -> None:
        self._log_k = math.log(max(prototypes, 2))
        self._patience = patience
        self._in_a_row: dict[str, int] = {}
        self._given: set[str] = set()
        self._first_rank: float | None = None

    def check(self, metrics: Mapping[str, float]) -> list[str]:
        """The warnings that this reading completes; usually none."""
        warnings = []
        for name, (present, text) in self._signs(metrics).items():
            self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if present else 0
            if self._in_a_row[name] >= self._patience and name not in self._given:
                self._given.add(name)
                warnings.append(text)
        return warnings

    def _signs(self, metrics: Mapping[str, float]) -> dict[str, tuple[bool, str]]:
        entropy = metrics.get("health/teacher_entropy", math.nan)
        divergence = metrics.get("health/target_kl", math.nan)
        used = metrics.get("health/prototypes_used", math.nan)
        rank = metrics.get("health/effective_rank", math.nan)
        if self._first_rank is None and math.isfinite(rank):
            self._first_rank = rank
        first_rank = self._first_rank or math.nan
        return {
            # 2 % of log K: a teacher that prefers nothing, and a student that has matched it.
            "uniform": (
                entropy > 0.98 * self._log_k and divergence < 0.02 * self._log_k,
                f"warning: the teacher's targets stay uniform (entropy {entropy:.2f} of at most "
                f"{self._log_k:.2f}, KL {divergence:.3f}): nothing is learned. Try fewer "
                "config.dino.head_prototypes, a lower config.teacher.temp, or "
                "config.centering=sinkhorn_knopp.",
            ),
            "one_hot": (
                entropy < 0.02 * self._log_k or used < 0.01,
                f"warning: the teacher uses few prototypes (entropy {entropy:.3f}, "
                f"{100 * used:.1f} % in use): one-hot collapse. Try a higher "
                "config.teacher.warmup_temp, a longer config.optimizer.freeze_last_layer_steps, or "
                "config.centering=sinkhorn_knopp.",
            ),
            "rank": (
                rank < 2.0 or rank < 0.1 * first_rank,
                f"warning: the features have lost their dimensions (effective rank {rank:.1f}, "
                f"{first_rank:.1f} at the start). Try a lower config.optimizer.base_lr or a higher "
                "config.dino.koleo_loss_weight.",
            ),
        }


class Output:
    """All that a run tells: metrics, progress and messages, opened and closed together.

    Args:
        folder: the run directory.
        total_steps, start_step: as in `MetricWriter`.
        silent: tells and writes nothing, as all but one of several processes do.
    """

    def __init__(
        self, folder: Path, total_steps: int, start_step: int, *, silent: bool = False
    ) -> None:
        self.folder, self.warnings = folder, list[str]()
        self._progress = self._writer = None
        if not silent:
            self._progress = Progress(total_steps, start_step=start_step)
            self._writer = MetricWriter(
                folder, total_steps, start_step=start_step, write_line=self._progress.write
            )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of a step, to the files and the console."""
        if self._writer is not None:
            self._writer.write(step, metrics)

    def message(self, text: str) -> None:
        """A line for the reader only."""
        if self._writer is not None:
            self._writer.message(text)

    def update(self, step: int) -> None:
        """Moves the progress bar."""
        if self._progress is not None:
            self._progress.update(step)

    def warn(self, messages: Sequence[str]) -> None:
        """Says each message and keeps it for the report."""
        self.warnings += messages
        for message in messages:
            self.message(message)

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None and self._writer is not None:
            self._progress.close()
            self._writer.close()
