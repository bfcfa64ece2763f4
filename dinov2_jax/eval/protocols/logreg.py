"""Logistic regression on the cls token (reference-facts 8.4)."""

import dataclasses
import os
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.eval.data import Data
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Need, Task, Work
from dinov2_jax.features.cache import Labelled
from dinov2_jax.heads.logistic import regression
from dinov2_jax.parallel.mesh import make_mesh, own_mesh
from dinov2_jax.parallel.processes import is_main

# The solver's names of metrics, as the reader knows them; it calls the sets' "map11" "mAP".
_READ_AS = {"top1": "top-1", "mean_per_class": "mean per class", "mAP": "11-point mAP"}


def open(context: Context) -> list[Task]:
    """C from val, or from 10 % of train; then a fit of train and val.

    Raises:
      ConfigError: no values of C, or more pictures than the memory holds.
    """
    return [task_of(context, context.data)]


def task_of(context: Context, data: Data, prefix: str = "") -> Task:
    """The task for one data set; `prefix` begins the titles of its pictures.

    Raises:
      ConfigError: as `open`.
    """
    exponents = context.config.logreg.log10_c
    if len(exponents) != 2 or exponents[0] > exponents[1]:
        raise ConfigError(
            f"config.logreg.log10_c is {exponents}, but must be the least and the greatest "
            "exponent, such as (-6.0, 5.0)"
        )
    _check_memory(context, data)
    needs = {
        split: Need(prefix + split, source, context.cls_of_whole_square)
        for split, source in data.splits.items()
    }

    def run(work: Work) -> Iterator[Finding]:
        splits = {split: work.features(need) for split, need in needs.items()}
        reported = "mAP" if data.metric == "map11" else data.metric
        report = _fit(context, splits, len(data.class_names), reported)
        chosen_on, n = "val" if "val" in splits else "10 % of train", len(splits["test"].labels)
        metrics = (
            Metric(_READ_AS[key], report.results[key], n=n, chosen_on=chosen_on)
            for key in sorted(report.results, key=lambda key: key != reported)
        )
        yield from with_paper(context, metrics, "logreg", data.published)
        yield from _trials(report, _READ_AS[reported], data.name, chosen_on)

    settings = context.settings("logreg", **data.splits) | {"metric": data.metric}
    return Task(data.name, tuple(needs.values()), settings, run)


def _check_memory(context: Context, data: Data) -> None:
    classes = len(data.class_names)
    rows = sum(len(source) for split, source in data.splits.items() if split != "test")
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
