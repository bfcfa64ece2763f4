"""Logistic regression on cls features, of one data set or of the twelve transfer sets."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError
from dinov2_jax.datasets.transfer import TRANSFER_SETS, Transfer, transfer_set
from dinov2_jax.eval.protocols import Inputs, Outcome
from dinov2_jax.features.cache import Labelled
from dinov2_jax.heads.logistic import regression as logreg
from dinov2_jax.parallel.mesh import make_mesh, own_mesh
from dinov2_jax.parallel.processes import is_main

# What the data sets and what the solver call the metrics, and what a reader does.
_METRICS = {"top1": "top1", "mean_per_class": "mean_per_class", "map11": "mAP"}
_NAMES = {"top1": "top-1", "mean_per_class": "mean per class", "mAP": "11-point mAP"}


def check_logreg(inputs: Inputs, others: Sequence[str]) -> None:
    """Raises ConfigError: no values of C, or more pictures than the memory holds."""
    assert inputs.data is not None
    _check_values(inputs.config.logreg)
    splits = inputs.data.splits
    rows = len(splits["train"]) + (len(splits["val"]) if "val" in splits else 0)
    # fp64: three copies of the features, and about six arrays of one number a picture and class.
    needed = 8 * rows * (3 * inputs.backbone.model.dim + 6 * len(inputs.data.class_names))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigError(
            f"logistic regression on {rows:,} pictures of {len(inputs.data.class_names):,} classes "
            f"needs about {needed / 2**30:.0f} GiB, and this machine has {there / 2**30:.0f}; use "
            "--config.protocols=linear_cached"
        )


def _check_values(settings: ConfigDict) -> None:
    if len(settings.log10_c) != 2 or settings.log10_c[0] > settings.log10_c[1]:
        raise ConfigError(
            f"config.logreg.log10_c is {settings.log10_c}, but must be the least and the greatest "
            "exponent, such as (-6.0, 5.0)"
        )


def open_transfer(inputs: Inputs, others: Sequence[str]) -> dict[str, Transfer]:
    """The sets that lie in `config.transfer.path`/<name>.

    Raises:
      ConfigError, SourceError: none of them, or one that is not whole.
    """
    _check_values(inputs.config.logreg)
    root = Path(inputs.config.transfer.path).expanduser()
    present = [name for name in TRANSFER_SETS if (root / name).is_dir()]
    if not inputs.config.transfer.path or not present:
        raise ConfigError(
            "transfer needs --config.transfer.path=<folder> with one or more of the folders "
            f"{', '.join(TRANSFER_SETS)} in it"
        )
    return {name: transfer_set(name, str(root / name)) for name in present}


def run_logreg(inputs: Inputs) -> Outcome:
    """C from val, or a tenth of train; then all of train and val (reference-facts 8.4)."""
    assert inputs.data is not None
    splits = {name: inputs.features(name) for name in inputs.data.splits}
    metric = _METRICS[inputs.data.metric]
    report = _fit(splits, len(inputs.data.class_names), metric, inputs.config.logreg)
    numbers = {**report.results, "trials": [dataclasses.asdict(t) for t in report.trials]}
    protocol = {
        "C": report.C,
        "chosen_on": "val" if "val" in splits else "a tenth of train",
        "metric": metric,
        "features": "cls, not normalised",
    }
    curve = [(float(np.log10(trial.C)), trial.value) for trial in report.trials]
    curves = {f"Logistic regression, {_NAMES[metric]} on validation by log10 C": curve}
    return Outcome({_NAMES[metric]: report.results[metric]}, numbers, protocol, curves)


def run_transfer(inputs: Inputs) -> Outcome:
    """The same on each of the twelve sets that is there."""
    headline, protocol, published = {}, {}, {}
    for name, found in inputs.opened.items():
        parts = {"train": found.train, "val": found.val, "test": found.test}
        splits = {
            part: inputs.features_of(source, f"{name}-{part}")
            for part, source in parts.items()
            if source is not None
        }
        metric = _METRICS[found.metric]
        report = _fit(splits, len(found.train.class_names or ()), metric, inputs.config.logreg)
        headline[name] = report.results[metric]
        protocol[name] = {"C": report.C, "metric": metric}
        published[name] = ("logreg", name)
    if len(headline) == len(TRANSFER_SETS):
        headline["average of 12"] = float(np.mean(list(headline.values())))
        published["average of 12"] = ("logreg", "average")
    return Outcome(headline, dict(headline), protocol, published=published)


def _fit(
    splits: Mapping[str, Labelled], classes: int, metric: str, settings: ConfigDict
) -> logreg.Report:
    sets = {n: (np.asarray(s.cls[-1], np.float32), s.labels) for n, s in splits.items()}
    low, high = settings.log10_c
    with jax.set_mesh(own_mesh(make_mesh())):  # several processes do the same, each for itself
        return logreg.evaluate(
            sets["train"],
            sets["test"],
            classes,
            val=sets.get("val"),
            values=tuple(10 ** np.linspace(low, high, settings.count)),
            metric=metric,
            max_iter=settings.max_iterations,
            show=is_main(),
        )
