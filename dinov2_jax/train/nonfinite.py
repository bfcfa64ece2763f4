"""Steps without a finite loss and gradient: saves their batches, stops after three in a row."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.errors import UserError, sentence

MAX_STREAK = 3


class NonFiniteLoss(UserError):
    """No finite loss and gradient in three consecutive steps."""


class NonFiniteWatch:
    """Checks each step two steps later, so that the host never waits for the device.

    The step itself skips a bad update (train/step.py). Its batch is saved here to
    <workdir>/nonfinite/step_<n>.npz, the first ten only. `name` goes before the extension: with
    several processes, each saves its own share.
    """

    def __init__(self, workdir: Path, lag_steps: int = 2, name: str = "") -> None:
        self._folder, self._lag, self._dumped = workdir / "nonfinite", lag_steps, 0
        self._name = name
        self._pending: deque[tuple[int, dict[str, np.ndarray], Any]] = deque()

    def add(self, step: int, batch: dict[str, np.ndarray], metrics: dict[str, Any]) -> list[str]:
        """Records a step, checks earlier ones and returns messages about them.

        Raises:
          NonFiniteLoss: after three bad steps in a row.
        """
        self._pending.append((step, batch, metrics["nonfinite_streak"]))
        return self.check(self._lag)

    def check(self, lag_steps: int = 0) -> list[str]:
        """Checks all but the newest `lag_steps` steps and returns messages about them."""
        messages = []
        while len(self._pending) > lag_steps:
            step, batch, streak = self._pending.popleft()
            if int(streak):
                messages.append(self._report(step, batch, int(streak)))
        return messages

    def _report(self, step: int, batch: dict[str, np.ndarray], streak: int) -> str:
        where = self._dump(step, batch)
        if streak >= MAX_STREAK:
            raise NonFiniteLoss(
                f"{streak} steps in a row up to step {step} had no finite loss or gradient; look at"
                f" the batches in {self._folder}, then continue from the last checkpoint with a "
                "lower config.optimizer.base_lr, more warmup_steps, or config.compute_dtype=float32"
            )
        return f"warning: step {step} had no finite loss or gradient and was skipped{where}"

    def _dump(self, step: int, batch: dict[str, np.ndarray]) -> str:
        if self._dumped >= 10:
            return ""
        path = self._folder / f"step_{step}{self._name}.npz"
        self._dumped += 1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, **batch)
        except OSError as error:  # the run itself needs no such file
            return f"; its batch could not be stored ({sentence(error)})"
        return f"; its batch is in {path}"
