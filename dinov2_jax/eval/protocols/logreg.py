"""Logistic regression on the cls token (reference-facts 8.4)."""

import dataclasses
import os
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import Source
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Need, Task, Work
from dinov2_jax.features.cache import Labelled
from dinov2_jax.heads.logistic import regression
from dinov2_jax.parallel.mesh import make_mesh, own_mesh
from dinov2_jax.parallel.processes import is_main

# What the data sets call the metrics: the solver's name, and the reader's.
METRICS = {
    "top1": ("top1", "top-1"),
    "mean_per_class": ("mean_per_class", "mean per class"),
    "map11": ("mAP", "11-point mAP"),
}
_READ_AS = dict(METRICS.values())


def open(context: Context) -> list[Task]:
    """C from val, or from 10 % of train; then a fit of train and val.

    Raises:
      ConfigError: no values of C, or more pictures than the memory holds.
    """
    data = context.data
    needs = {split: context.need(split, context.cls_of_whole_square) for split in data.splits}
    classes = len(data.class_names)
    return [task_of(context, data.name, needs, classes, data.metric, data.published)]


def task_of(
    context: Context,
    name: str,
    needs: Mapping[str, Need],
    classes: int,
    metric: str,
    published: str,
) -> Task:
    """The task for one data set; `needs` are its "train", "test", and "val" if it has one.

    Raises:
      ConfigError: as `open`.
    """
    _check_values(context)
    sources = {split: need.source for split, need in needs.items()}
    _check_memory(context, sources, classes)

    def run(work: Work) -> Iterator[Finding]:
        splits = {split: work.features(need) for split, need in needs.items()}
        report = _fit(context, splits, classes, METRICS[metric][0])
        chosen_on = "val" if "val" in splits else "10 % of train"
        reported, n = METRICS[metric][0], len(splits["test"].labels)
        metrics = (
            Metric(_READ_AS[key], report.results[key], n=n, chosen_on=chosen_on)
            for key in sorted(report.results, key=lambda key: key != reported)
        )
        yield from with_paper(context, metrics, "logreg", published)
        yield from _trials(report, METRICS[metric][1], name, chosen_on)

    settings = context.settings("logreg", **sources) | {"metric": metric}
    return Task(name, tuple(needs.values()), settings, run)


def _check_values(context: Context) -> None:
    low, high = (*context.config.logreg.log10_c, None, None)[:2]
    if len(context.config.logreg.log10_c) != 2 or low > high:
        raise ConfigError(
            f"config.logreg.log10_c is {context.config.logreg.log10_c}, but must be the least and "
            "the greatest exponent, such as (-6.0, 5.0)"
        )


def _check_memory(context: Context, sources: Mapping[str, Source], classes: int) -> None:
    rows = sum(len(sources[split]) for split in ("train", "val") if split in sources)
    # fp64: three copies of the features, and about six arrays of one number a picture and class.
    needed = 8 * rows * (3 * context.backbone.model.dim + 6 * classes)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigError(
            f"logistic regression on {rows:,} pictures of {classes:,} classes "
            f"needs about {needed / 2**30:.0f} GiB, and this machine has {there / 2**30:.0f}; use "
            "--config.protocols=linear_cached"
        )


def _fit(
    context: Context, splits: Mapping[str, Labelled], classes: int, metric: str
) -> regression.Report:
    sets = {n: (np.asarray(s.cls[-1], np.float32), s.labels) for n, s in splits.items()}
    settings = context.config.logreg
    low, high = settings.log10_c
    with jax.set_mesh(own_mesh(make_mesh())):  # several processes do the same, each for itself
        return regression.evaluate(
            sets["train"],
            sets["test"],
            classes,
            val=sets.get("val"),
            values=tuple(10 ** np.linspace(low, high, settings.count)),
            metric=metric,
            max_iter=settings.max_iterations,
            show=is_main(),
        )


def _trials(report: regression.Report, metric: str, name: str, chosen_on: str) -> Iterator[Finding]:
    """The sweep over C, as a curve and as notes."""
    points = [(trial.C, trial.value) for trial in report.trials]
    title = f"Logistic regression on {name}, {metric} on {chosen_on}"
    yield Curve(title, "C", {"": points}, ("", report.C), log_x=True)
    trials = [dataclasses.asdict(trial) for trial in report.trials]
    notes = {"C": report.C, "chosen_on": chosen_on, "metric": metric, "trials": trials}
    yield notes | {"features": "cls, not normalised"}
