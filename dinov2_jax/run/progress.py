"""Progress with an ETA, and throughput."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import IO

from tqdm import tqdm


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
        self._interval_s, self._bar = interval_s, None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps, initial=start_step, file=self._stream, unit=unit,
                smoothing=0.1, dynamic_ncols=True,
            )  # fmt: skip

    def update(self, step: int, **shown: float) -> None:
        """Moves to `step`; `shown` are numbers to print next to it, such as the loss."""
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)
            self._bar.update(step - self._step)
        elif time.monotonic() - self._last_line >= self._interval_s:
            self._last_line = time.monotonic()
            numbers = "".join(f"  {name} {value:.4g}" for name, value in shown.items())
            self.write(f"{self._unit} {step}/{self._total}  ETA {self._eta(step)}{numbers}")
        self._step = step

    def write(self, line: str) -> None:
        """Prints a line without breaking the bar; to a reader that has gone, nothing."""
        with contextlib.suppress(BrokenPipeError):  # such as `| head`: no reason to lose a run
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
        return tqdm.format_interval((time.monotonic() - self._began) / done * (self._total - step))


class Throughput:
    """Images a second and the share of time spent waiting for data, since the last reading."""

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._batch_size, self._clock = batch_size, clock
        self._wait_began = 0.0
        self.restart()

    def restart(self) -> None:
        """Forgets the time so far; called after work that is not training, such as k-NN."""
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
        """Returns {"images_per_s", "data_wait_share" (0..1)} and restarts."""
        elapsed_s = max(self._clock() - self._began, 1e-9)
        rates = {
            "images_per_s": self._steps * self._batch_size / elapsed_s,
            "data_wait_share": min(1.0, self._waited_s / elapsed_s),
        }
        self.restart()
        return rates
