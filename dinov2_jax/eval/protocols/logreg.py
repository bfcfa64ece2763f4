"""Logistic regression on the cls token (FB dinov2/eval/log_regression.py)."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.eval.data import Data
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Need, Task, Work
from dinov2_jax.features.cache import Labelled
from dinov2_jax.heads.logistic import regression
from dinov2_jax.parallel import memory
from dinov2_jax.parallel.mesh import make_mesh, own_mesh
from dinov2_jax.parallel.processes import is_main

# The solver's names of metrics, as the reader knows them; it calls the sets' "map11" "mAP".
_READ_AS = {"top1": "top-1", "mean_per_class": "mean per class", "mAP": "11-point mAP"}


def open(context: Context) -> list[Task]:
    """C from val, or from 10 % of train; then a fit of train and val.

    Raises:
      ConfigError: no values of C, or more pictures than host or device memory holds.
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
        learned = len(splits["train"].labels)
        metrics = (
            Metric(_READ_AS[key], report.results[key], n=n, chosen_on=chosen_on)
            for key in sorted(report.results, key=lambda key: key != reported)
        )
        yield from with_paper(context, metrics, "logreg", data.published, train=learned)
        yield from _trials(report, _READ_AS[reported], data.name, chosen_on)

    settings = context.settings("logreg", **data.splits) | {"metric": data.metric}
    return Task(data.name, tuple(needs.values()), settings, run)


def _check_memory(context: Context, data: Data) -> None:
    """Raises ConfigError if host or devices cannot hold the fit."""
    classes, several = len(data.class_names), data.metric == "map11"
    counts = {split: len(source) for split, source in data.splits.items()}
    judged = counts.pop("test")
    rows, devices = sum(counts.values()), jax.local_device_count()
    shape = {"rows": rows, "dim": context.backbone.model.dim, "classes": classes}
    on_host = regression.host_bytes_of_fit(**shape, judged=judged)
    on_device = regression.device_bytes_of_fit(**shape, devices=devices, several=several)
    host, device = memory.host_bytes(), memory.device_bytes()
    if device is None:  # on a CPU, which shares the memory of the host
        on_host, on_device, device = on_host + devices * on_device, 0, 0
    if on_host <= host and on_device <= device:
        return
    needed, there, where = on_host, host, "this machine has"
    if on_host <= host:
        needed, there = on_device, device
        where = "this device has free" if devices == 1 else f"one of {devices} devices has free"
    raise ConfigError(
        f"logistic regression on {rows:,} pictures of {classes:,} classes needs about "
        f"{needed / 2**30:.1f} GiB, and {where} {there / 2**30:.1f}; use "
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
