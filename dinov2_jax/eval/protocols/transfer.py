"""Logistic regression on each of the twelve transfer sets (paper, table 8)."""

import os
from collections.abc import Iterator, Mapping

import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.datasets.transfer import TRANSFER_SETS, transfer_folders
from dinov2_jax.eval.data import open_published
from dinov2_jax.eval.protocols import logreg
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Finding, Metric, Task, Work
from dinov2_jax.parallel.processes import is_main

AVERAGE = "average of 12"


def open(context: Context) -> list[Task]:
    """One task for each set in `config.transfer.path`, and the average of all twelve.

    Raises:
      ConfigError, SourceError: there is no set, or one that is not whole.
    """
    root = os.path.expanduser(context.config.transfer.path)
    present = transfer_folders(root) if os.path.isdir(root) else {}
    if not present:
        raise ConfigError(
            "transfer needs --config.transfer.path=<folder> with one or more of the folders "
            f"{', '.join(TRANSFER_SETS)} in it"
        )
    lost = [name for name in TRANSFER_SETS if name not in present]
    if lost and is_main():
        print(f"note: {root} holds no {', '.join(lost)}, so there is no average", flush=True)
    sets = (open_published(name, path) for name, path in present.items())
    tasks = [logreg.task_of(context, data, f"{data.name}-") for data in sets]
    if len(tasks) == len(TRANSFER_SETS):
        judged = sum(len(need.source) for task in tasks for need in task.needs[-1:])
        tasks.append(_average(context, {task.data: task.settings for task in tasks}, judged))
    return tasks


def _average(context: Context, settings: Mapping[str, object], pictures: int) -> Task:
    """The mean of the sets' metrics, which the runner hands over when they are known.

    `pictures` are those of all test splits.
    """

    def run(work: Work) -> Iterator[Finding]:
        mean = float(np.mean([work.earlier[name] for name in TRANSFER_SETS]))
        yield from with_paper(context, [Metric("average", mean, n=pictures)], "logreg", AVERAGE)

    return Task(AVERAGE, (), {"sets": settings}, run)
