"""Steps without a finite loss and gradient: saves their batches, stops after three in a row."""

from pathlib import Path

import numpy as np

from dinov2_jax.errors import UserError, sentence

MAX_STREAK = 3


class NonFiniteLoss(UserError):
    """No finite loss and gradient in three consecutive steps."""


class NonFiniteWatch:
    """Looks at every step, in order, once the device has computed it.

    The step itself skips a bad update (train/step.py). Its batch is saved here to
    <workdir>/nonfinite/step_<n>.npz, the first ten only. `name` goes before the extension: with
    several processes, each saves its own share.
    """

    def __init__(self, workdir: Path, name: str = "") -> None:
        self._folder, self._name, self._dumped = workdir / "nonfinite", name, 0

    def check(self, step: int, batch: dict[str, np.ndarray], streak: int) -> list[str]:
        """Messages about a step that ends a streak of `streak` bad steps; none if that is 0.

        Raises:
          NonFiniteLoss: after three bad steps in a row.
        """
        return [self._report(step, batch, streak)] if streak else []

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
