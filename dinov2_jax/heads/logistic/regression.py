"""Logistic regression on frozen features (FB dinov2/eval/log_regression.py, reference-facts 8.4).

L2 penalty 1/2 |W|^2 + C sum of losses, intercept fitted and not penalised; C in 45 steps from 1e-6
to 1e5, chosen on a validation set, or else on a random tenth of the training set; the final model
is fitted again on all. Labels [n] are fitted by softmax (two classes by one sigmoid, as
scikit-learn and cuML do); labels [n, K] of 1, 0 and -1 (unknown) by one sigmoid a class.
"""

# DINOv2: the reference stops cuML's L-BFGS after 1000 steps; here every C is solved to its optimum
# (see logistic.py), which for large C those steps do not reach.

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.logistic.fit import C_VALUES, TOLERANCE, Fitter, Model, check_values, fit_from
from dinov2_jax.metrics.classification import (
    mean_average_precision,
    mean_per_class_accuracy,
    top_accuracy,
)
from dinov2_jax.run.progress import Progress

HELD_OUT = 10  # one in so many chooses C where no validation set is given

Set = tuple[np.ndarray, np.ndarray]  # features [n, D]; labels [n] or [n, K]
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "top1": lambda scores, labels: top_accuracy(scores, labels, 1),
    "mean_per_class": lambda scores, labels: mean_per_class_accuracy(scores, labels),
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
    """What `evaluate` found: test results in percent, the chosen C, all trials, the final model."""

    results: dict[str, float]
    C: float
    trials: tuple[Trial, ...]
    model: Model


def sweep(
    train: Set,
    val: Set,
    classes: int,
    *,
    values: Sequence[float] = C_VALUES,
    metric: str = "top1",
    max_iter: int = 1000,
    tol: float = TOLERANCE,
    show: bool = False,
) -> tuple[Model, tuple[Trial, ...]]:
    """Fits every C to `train` and rates it on `val`.

    Args:
      metric: "top1", "mean_per_class", or "mAP" for labels [n, K].
      show: a bar with the time that is left, on standard error.

    Returns:
      The model with the best value, of equal ones that with the smallest C; and all trials, by C.

    Raises:
      EvaluationError: as `fit`, for an unknown metric, or one that does not fit the labels.
    """
    check_values(values)
    _check_metric(metric, train[1], val[1])
    fitter = Fitter(train[0], np.asarray(train[1]), classes)
    return _sweep(fitter, val, values, metric, max_iter, tol, show)


def _sweep(
    fitter: Fitter,
    val: Set,
    values: Sequence[float],
    metric: str,
    max_iter: int,
    tol: float,
    show: bool,
) -> tuple[Model, tuple[Trial, ...]]:
    best: tuple[float, Model] | None = None
    trials: list[Trial] = []
    progress = Progress(len(values), unit="C") if show else None

    def rate(model: Model) -> None:
        nonlocal best
        value = METRICS[metric](model.scores(val[0]), val[1])
        trials.append(Trial(model.C, value, model.objective, model.iterations))
        if best is None or value > best[0]:
            best = value, model
        if progress:
            progress.update(len(trials), C=model.C, **{metric: value})

    fitter.path(sorted(values), rate, tol=tol, max_iter=max_iter)
    if progress:
        progress.close()
    assert best is not None
    return best[1], tuple(trials)


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
    merge: bool = True,
    values: Sequence[float] = C_VALUES,
    metric: str = "top1",
    seed: int = 0,
    max_iter: int = 1000,
    tol: float = TOLERANCE,
    show: bool = False,
) -> Report:
    """The protocol: C from a sweep, then a fit on all training data, and its test results.

    Args:
      train, test, val: (features [n, D], labels [n] or [n, K]). Without `val`, a random tenth of
        train chooses C while the sweep fits the other nine.
      merge: fit again on train and val together. False with `val=test` is the reference's
        finetune_on_val.
      metric: chooses C, see `sweep`; the report has all that apply.
      seed: of the random tenth.

    Raises:
      EvaluationError: as `sweep`; fewer than 10 training rows without `val`.
    """
    _check_metric(metric, train[1], test[1], *([] if val is None else [val[1]]))
    check_values(values)
    parts = (train, val)
    if val is None:
        merge = True
        parts = split(train, seed)
    fitted, chosen_on = parts
    assert chosen_on is not None
    fitter = Fitter(fitted[0], np.asarray(fitted[1]), classes)
    model, trials = _sweep(fitter, chosen_on, values, metric, max_iter, tol, show)
    if merge:
        everything = train if val is None else _join(train, val)
        fitter = Fitter(everything[0], np.asarray(everything[1]), classes)
        model = fit_from(fitter, model.C, model, max_iter, tol)
    names = ("mAP",) if metric == "mAP" else ("top1", "mean_per_class")
    scores = model.scores(test[0])
    return Report({name: METRICS[name](scores, test[1]) for name in names}, model.C, trials, model)


def split(data: Set, seed: int) -> tuple[Set, Set]:
    """Nine tenths to fit and a random tenth to choose C, drawn from `seed`.

    Raises:
      EvaluationError: for fewer than 10 rows.
    """
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


def _join(first: Set, second: Set) -> Set:
    return tuple(np.concatenate(pair) for pair in zip(first, second, strict=True))
