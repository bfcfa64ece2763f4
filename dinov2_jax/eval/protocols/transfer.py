"""Logistic regression on each of the twelve transfer sets (paper, table 8)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.datasets.transfer import TRANSFER_SETS
from dinov2_jax.eval.data import open_published
from dinov2_jax.eval.protocols import logreg
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Finding, Metric, Task, Work

AVERAGE = "average of 12"


def open(context: Context) -> list[Task]:
    """One task for each set in `config.transfer.path`/<name>, and the average of all twelve.

    Raises:
      ConfigError, SourceError: there is no set, or one that is not whole.
    """
    root = Path(context.config.transfer.path).expanduser()
    present = [name for name in TRANSFER_SETS if (root / name).is_dir()]
    if not context.config.transfer.path or not present:
        raise ConfigError(
            "transfer needs --config.transfer.path=<folder> with one or more of the folders "
            f"{', '.join(TRANSFER_SETS)} in it"
        )
    sets = (open_published(name, str(root / name)) for name in present)
    tasks = [logreg.task_of(context, data, f"{data.name}-") for data in sets]
    if len(tasks) == len(TRANSFER_SETS):
        tasks.append(_average(context, {task.data: task.settings for task in tasks}))
    return tasks


def _average(context: Context, settings: Mapping[str, object]) -> Task:
    """The mean of the sets' metrics, which the runner hands over when they are known."""

    def run(work: Work) -> Iterator[Finding]:
        mean = float(np.mean([work.earlier[name] for name in TRANSFER_SETS]))
        yield from with_paper(context, [Metric("average", mean)], "logreg", AVERAGE)

    return Task(AVERAGE, (), {"sets": settings}, run)
