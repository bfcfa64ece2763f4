"""Logistic regression on frozen features (FB dinov2/eval/log_regression.py).

C is chosen from 45 values between 1e-6 and 1e5 on a validation set, or else on a random tenth of
the training set; the final model is fitted on training and validation set together. fit.py has the
objective.
"""

# DINOv2: the reference stops cuML's L-BFGS after 1000 steps, before the optimum of a large C; here
# every C is solved to its optimum (see newton.py).

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.logistic.fit import C_VALUES, Fitter, Model, check_values, fit
from dinov2_jax.metrics.classification import (
    mean_average_precision,
    mean_per_class_accuracy,
    top_accuracy,
)
from dinov2_jax.run.progress import Progress

HELD_OUT = 10  # one in so many chooses C where no validation set is given

Set = tuple[np.ndarray, np.ndarray]  # features [n, D]; labels [n] or [n, K]
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "top1": functools.partial(top_accuracy, top=1),
    "mean_per_class": mean_per_class_accuracy,
    "mAP": lambda scores, labels: mean_average_precision(scores, labels)[0],
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One C of a sweep: its metric on the validation set, its objective and Newton steps."""

    C: float
    value: float
    objective: float
    iterations: int


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of `evaluate`: test metrics in percent, the chosen C, all trials, the final model."""

    results: dict[str, float]
    C: float
    trials: tuple[Trial, ...]
    model: Model


def sweep(
    fitter: Fitter,
    val: Set,
    *,
    values: Sequence[float] = C_VALUES,
    metric: str = "top1",
    max_iter: int = 1000,
    show: bool = False,
) -> tuple[Model, tuple[Trial, ...]]:
    """Fits every C to the training set of `fitter` and rates it on `val`.

    `metric` is "top1", "mean_per_class", or "mAP" for labels [n, K]; `show` draws a bar with the
    time that is left, on standard error. Returns the model with the best value, of equal ones that
    with the smallest C; and all trials, by C. Raises EvaluationError for a C that is not positive.
    """
    check_values(values)
    trials: list[Trial] = []
    best: tuple[float, Model] | None = None
    progress = Progress(len(values), unit="C") if show else None
    for model in fitter.path(sorted(values), max_iter=max_iter):
        value = METRICS[metric](model.scores(val[0]), val[1])
        trials.append(Trial(model.C, value, model.objective, model.iterations))
        if best is None or value > best[0]:
            best = value, model
        if progress:
            progress.update(len(trials), C=model.C, **{metric: value})
    if progress:
        progress.close()
    assert best is not None
    return best[1], tuple(trials)


def host_bytes_of_fit(*, rows: int, dim: int, classes: int, judged: int) -> int:
    """About what `evaluate` holds on the host for train and val of `rows`, and `judged` of test."""
    # Features in fp32 as given, once more for the fit, and centred in fp32 and fp64; targets.
    train = rows * (20 * dim + 2 * classes)
    return train + judged * (4 * dim + 16 * classes)  # scores in fp64 and their ranks


def device_bytes_of_fit(
    *, rows: int, dim: int, classes: int, devices: int, several: bool = False
) -> int:
    """About what `evaluate` holds on each of the devices, which split the rows.

    `several` for labels [n, K].
    """
    wide = (
        4 if jax.default_backend() == "tpu" else 8
    )  # bytes of a number of gradients, see `Fitter`
    # An evaluation has three arrays of logits in `wide`; five points keep probabilities in fp32.
    each = dim * (4 + wide) + classes * (3 * wide + 5 * 4 + 1 + 4 * several)
    # Five points with weights and gradients; the preconditioner's matrices and their workspace.
    everywhere = 10 * wide * classes * dim + 16 * (dim**2 + classes**2)
    return -(-rows // devices) * each + everywhere


def _check_metric(metric: str, *labels: np.ndarray) -> None:
    if metric not in METRICS:
        raise EvaluationError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
    several = {np.ndim(part) == 2 for part in labels}
    if several != {metric == "mAP"}:
        shapes = ", ".join(str(np.shape(part)) for part in labels)
        raise EvaluationError(
            f"metric {metric!r} does not fit labels of shape {shapes}; labels [n, K] have mAP, and "
            "labels [n] have top1 and mean_per_class"
        )


def evaluate(
    train: Set,
    test: Set,
    classes: int,
    *,
    val: Set | None = None,
    values: Sequence[float] = C_VALUES,
    metric: str = "top1",
    seed: int = 0,
    max_iter: int = 1000,
    show: bool = False,
) -> Report:
    """Chooses C by a sweep, fits all training data with it, and tests the model.

    Args:
      train, test, val: (features [n, D], labels [n] or [n, K]). Without `val`, a random tenth of
        train chooses C while the sweep fits the other nine tenths.
      metric: chooses C, see `sweep`; the report has all that apply.
      seed: of the random tenth.

    Raises:
      EvaluationError: for what `Fitter` refuses, an unknown metric or one that does not fit the
        labels, or fewer than 10 training rows without `val`.
    """
    _check_metric(metric, train[1], test[1], *([] if val is None else [val[1]]))
    fitted, chosen_on = (train, val) if val is not None else split(train, seed)
    how = {"metric": metric, "max_iter": max_iter, "show": show}
    model, trials = sweep(Fitter(*fitted, classes), chosen_on, values=values, **how)
    if val is not None:
        train = np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]])
    model = fit(Fitter(*train, classes), model.C, init=model, max_iter=max_iter)
    names = ("mAP",) if metric == "mAP" else ("top1", "mean_per_class")
    scores = model.scores(test[0])
    return Report({name: METRICS[name](scores, test[1]) for name in names}, model.C, trials, model)


def split(data: Set, seed: int) -> tuple[Set, Set]:
    """Nine tenths to fit and a random tenth to choose C; EvaluationError for fewer than 10 rows."""
    features, labels = data
    held = len(features) // HELD_OUT
    if not held:
        raise EvaluationError(
            f"{len(features)} training rows leave none for choosing C, which takes a tenth of "
            "them; give a validation set"
        )
    # DINOv2: numpy draws the tenth, the reference torch: the same rule, other pictures.
    order = np.random.default_rng(seed).permutation(len(features))
    kept, chosen = np.sort(order[held:]), np.sort(order[:held])
    return (features[kept], labels[kept]), (features[chosen], labels[chosen])
