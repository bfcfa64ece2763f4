"""What the steps of a run measured: lines of metrics, rates, warnings and bad batches."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from dinov2_jax.parallel.processes import own_name
from dinov2_jax.run.health import HealthMonitor
from dinov2_jax.run.late import Late
from dinov2_jax.run.metrics import Output
from dinov2_jax.run.progress import Throughput
from dinov2_jax.train.nonfinite import NonFiniteWatch


class Taken(NamedTuple):
    """A step that was given to the device.

    Attributes:
      batch: on the host; stored if the loss or a gradient is not finite.
      skipped_pictures: of the run up to this step.
    """

    step: int
    batch: dict[str, np.ndarray]
    metrics: Mapping[str, Array]
    skipped_pictures: int


class StepLog:
    """Reads the metrics of each step two steps later, and writes those that are due.

    Args:
      start: number of steps before the first one.

    Attributes:
      meter: of waiting for batches; `restart` it after work that is not training.
    """

    def __init__(self, config: ConfigDict, out: Output, start: int) -> None:
        self.meter = Throughput(config.batch_size)
        self._out, self._first, self._last = out, start + 1, config.total_steps
        self._every_steps = config.log_every_steps
        self._health = HealthMonitor(config.dino.head_prototypes)
        self._nonfinite = NonFiniteWatch(out.folder, name=own_name())
        self._late = Late(self._read)

    def add(self, taken: Taken) -> None:
        """Takes the newest step, and reads an earlier one.

        Raises:
          NonFiniteLoss
        """
        if not self._due(taken.step):
            streak = taken.metrics["nonfinite_streak"]
            taken = taken._replace(metrics={"nonfinite_streak": streak})
        for value in taken.metrics.values():
            value.copy_to_host_async()  # begins as soon as the step ends
        self._late.add(taken)

    def flush(self) -> None:
        """Waits for the device and reads all steps.

        Raises:
          NonFiniteLoss: the steps after it are read by another call.
        """
        self._late.flush()

    def _due(self, step: int) -> bool:
        return step % self._every_steps == 0 or step == self._last

    def _read(self, taken: Taken) -> None:
        step, batch, metrics, skipped_pictures = taken
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        # A step counts when the host knows that it has ended, not when the device was given it:
        # a rate is that of the steps since the line before. Where the device is slower than the
        # loader, the host has waited for this step, and the time is exact. Where the loader is
        # slower, it is known two steps late. Only the first and the last line between two saves
        # notice, because a save waits for all steps; over all lines the time is right.
        self.meter.step()
        if self._due(step):
            rates = {} if step == self._first else self.meter.read()
            self._out.write(step, values | rates | {"skipped_pictures": skipped_pictures})
            self._out.warn(self._health.check(values))
        if step == self._first:  # it also loads the program and waits for the first pictures
            self.meter.restart()
        self._out.warn(self._nonfinite.check(step, batch, int(values["nonfinite_streak"])))
