"""Training from files as train/loop.py does it: its loader, its copy to the device, its step."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from dinov2_jax.bench.draws import draw_noise
from dinov2_jax.bench.harness import Arrays, Part, Settings, Side
from dinov2_jax.bench.ours import step
from dinov2_jax.bench.ours.pipeline import statistics_of
from dinov2_jax.bench.ours.runtime import configure, side_of
from dinov2_jax.data.loader import TrainLoader
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import local_groups, put_batch
from dinov2_jax.run.late import Late
from dinov2_jax.train.nonfinite import NonFiniteWatch
from dinov2_jax.train.setup import make_photometric, make_run
from dinov2_jax.train.start import loading


class _Files:
    """The training loader, opened anew for each turn; it continues where it stopped."""

    def __init__(self, settings: Settings) -> None:
        self.config = ConfigDict(settings["config"])
        self.source = open_source("folder", settings["photos"], split="all")
        self.mesh = make_mesh(data=1)
        self.loader: TrainLoader | None = None
        self.start = 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        share = local_groups(self.mesh, self.config.batch_size // self.config.group_size)
        with loading(self.config, self.source, self.start, share) as self.loader:
            yield
            self.start = self.loader.state()["next_image"]

    @contextlib.contextmanager
    def flowing(self, consume: Callable[[int], None]) -> Iterator[None]:
        """Opens the loader and gives `consume` two batches per worker."""
        with self.opened():
            consume(2 * max(1, self.config.data.workers))
            yield

    def next(self) -> dict[str, np.ndarray]:
        """A batch without the reports about its records."""
        assert self.loader is not None
        batch = next(self.loader)
        return {k: x for k, x in batch.items() if k not in ("record", "bad_records")}

    def drop(self, batches: int) -> None:
        """Loads without training."""
        for _ in range(batches):
            self.next()


class _Training:
    """The steps of train/loop.py without checkpoints, reports and k-NN."""

    def __init__(self, files: _Files, settings: Settings) -> None:
        self.files, self.config = files, files.config
        self.run = make_run(self.config, files.mesh)
        with jax.set_mesh(files.mesh):
            self.state = self.run.init()
        noise = draw_noise(settings["config"], settings["seed"])
        self.noise = put_batch(noise, files.mesh)
        self.number = 0
        self.watch = NonFiniteWatch(Path(settings["photos"]).parent)
        self.late = Late(self._read)

    def _step(self, batch: dict[str, Array]) -> dict[str, Array]:
        hyper = self.run.schedules.at(self.number)
        self.state, metrics = self.run.step(self.state, batch, hyper)
        self.number += 1
        return metrics

    def _read(self, step: int, batch: dict[str, np.ndarray], metrics: dict[str, Array]) -> None:
        if step % self.config.log_every_steps == 0:
            jax.device_get(metrics)
        self.watch.check(step, batch, int(metrics["nonfinite_streak"]))

    def from_files(self, steps: int) -> None:
        """Waits for the device as rarely as the training loop."""
        with jax.set_mesh(self.files.mesh):
            for _ in range(steps):
                batch = self.files.next()
                metrics = self._step(put_batch(batch, self.files.mesh))
                self.late.add(self.number, batch, metrics)
        self.late.flush()
        jax.block_until_ready(self.state)

    def from_noise(self, steps: int) -> None:
        """Repeats the step on a batch that is on the device."""
        with jax.set_mesh(self.files.mesh):
            for _ in range(steps):
                self._step(self.noise)
        jax.block_until_ready(self.state)


def _check(settings: Settings) -> Arrays:
    """Two steps as in bench.step, and statistics of augmented crops from the files."""
    numbers = step.side(settings).check()
    files = _Files(settings)
    colours = jax.jit(make_photometric(files.config))
    keys = jax.random.split(jax.random.key(settings["seed"]), settings["check_batches"])
    with files.opened():
        batches = [colours(key, files.next()) for key in keys]
    return numbers | statistics_of([(x["global_crops"], x["local_crops"]) for x in batches])


def side(settings: Settings) -> Side:
    """settings: as ours/step.py, "photos" (a list file), "check_batches", "check" (no timing)."""
    if settings["check"]:
        return side_of(lambda: _check(settings), lambda repetitions: None)
    configure({"dtype": settings["config"]["compute_dtype"]})
    files = _Files(settings)
    training = _Training(files, settings)
    return dataclasses.replace(
        side_of(dict, training.from_files),
        around=lambda: files.flowing(training.from_files),
        # Workers deliver in bursts, of which a turn has whole ones.
        multiple=4 * max(1, files.config.data.workers),
        parts={
            "synthetic": Part(training.from_noise),
            "loader": Part(files.drop, lambda: files.flowing(files.drop)),
        },
    )
