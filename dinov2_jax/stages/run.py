"""Task "stages": prints the plan of a recipe, trains and evaluates its stages, writes the page."""

import contextlib
import gc
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from ml_collections import ConfigDict

from dinov2_jax.config.files import local_path, to_dict
from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.run.files import write_json
from dinov2_jax.run.lock import locked
from dinov2_jax.stages import progress
from dinov2_jax.stages.evaluation import check_pictures, evaluate_run, evaluation_of, settings_of
from dinov2_jax.stages.page import PAGE, write_page
from dinov2_jax.stages.plan import describe
from dinov2_jax.stages.recipe import Stage, naming, read_recipe
from dinov2_jax.train.loop import train

Evaluations = Mapping[str, ConfigDict]  # by name of a stage


def run(recipe: ConfigDict, workdir: str = "") -> None:
    """Runs what is left to do of a recipe; without a workdir it prints the plan alone.

    Raises:
      UserError: whatever cannot run, in one sentence; all that can be seen before is told before
        the first stage begins.
    """
    folder = local_path(workdir, "--workdir") if workdir else Path("<workdir>")
    stages = read_recipe(recipe, folder)
    evaluations = {one.name: evaluation_of(one, recipe) for one in stages if one.evaluate}
    _say("\n".join(describe(stages, recipe)))
    if not workdir:
        _say("nothing was run: add --workdir=runs/<name>")
        return
    with locked(folder, wait=False), _ends_at_sigterm():
        progress.check_unchanged(stages, folder)
        check_pictures(_waiting(stages, evaluations, folder), evaluations, folder / "labels")
        if is_main():
            write_json(folder / "config.json", to_dict(recipe))
        if not _run_all(stages, evaluations, folder):
            _say("the recipe stopped; the same command continues")
            return
        if is_main():
            write_page(stages, folder)
        _say(f"all {len(stages)} stages are finished; side by side in {folder / PAGE}")


def _say(text: str) -> None:
    if is_main():
        print(text, flush=True)


def _waiting(stages: Sequence[Stage], evaluations: Evaluations, folder: Path) -> list[Stage]:
    """The stages that are to be trained or evaluated; process 0 decides for all."""
    found = from_main(
        [
            i
            for i, stage in enumerate(stages)
            if not progress.is_trained(stage, folder)
            or not progress.is_evaluated(stage, _settings(stage, evaluations), folder)
        ]
    )
    return [stages[i] for i in found]


def _settings(stage: Stage, evaluations: Evaluations) -> dict[str, Any]:
    return settings_of(evaluations[stage.name]) if stage.evaluate else {}


def _run_all(stages: Sequence[Stage], evaluations: Evaluations, folder: Path) -> bool:
    """Trains and evaluates what is not finished; False after a signal to stop."""
    waiting = _waiting(stages, evaluations, folder)
    for number, stage in enumerate(stages, 1):
        title = f"stage {number} of {len(stages)}: {stage.name}"
        if stage not in waiting:
            _say(f"{title} is finished")
            continue
        _say(title)
        if not _train(stage, folder):
            return False
        if stage.evaluate:
            _evaluate(stage, evaluations[stage.name], folder)
        if is_main():
            write_page(stages, folder)
        _forget_programs()
    return True


def _train(stage: Stage, folder: Path) -> bool:
    """Trains a stage to its end, or continues it; False after a signal to stop."""
    if from_main(progress.is_trained(stage, folder)):
        return True
    record, began = progress.begin_record(stage, folder), time.monotonic()
    if is_main():
        progress.write_record(stage, record)
    try:
        with naming(stage.name):
            train(stage.config, str(stage.folder))
    finally:
        # The clock of a start that was killed is lost.
        seconds = record.get("train_s", 0.0) + time.monotonic() - began
        if is_main():
            progress.write_record(stage, record | {"train_s": round(seconds, 1)})
    _forget_programs()
    return from_main(progress.is_trained(stage, folder))


def _evaluate(stage: Stage, config: ConfigDict, folder: Path) -> None:
    """Evaluates all runs of a stage, and notes it in its record."""
    settings, found = settings_of(config), {}
    for run in stage.runs:
        _say(f"evaluating {run}: {', '.join(stage.evaluate)}")
        with naming(stage.name):
            results = evaluate_run(config, folder / run)
        found[run] = {"settings": settings, "results": results}
    if is_main():
        record = progress.read_record(stage)
        progress.write_record(stage, record | {"evaluations": found})


def _forget_programs() -> None:
    """The next stage has other shapes; the programs of this one would only take memory."""
    jax.clear_caches()
    gc.collect()


@contextlib.contextmanager
def _ends_at_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends as Ctrl-C does, with locks released; training answers it by itself."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # outside the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
