"""Fits logistic regression to one training set, for one or many strengths of the penalty.

The objective is 1/2 |W|^2 + C sum of losses, intercept fitted and not penalised; softmax for labels
[n] (two classes by one sigmoid, as scikit-learn and cuML do), one sigmoid a class for labels [n, K]
of 1, 0 and -1 (unknown). Every C is solved to its optimum, see newton.py.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.heads.logistic.newton import Solution, place, solve_path

C_VALUES = tuple(10 ** np.linspace(-6, 5, 45))
TOLERANCE = 1e-7  # relative, of the objective before the last step; see newton.solve_path


@dataclasses.dataclass(frozen=True)
class Model:
    """A fitted classifier: scores = features weight' + bias.

    A class without training rows has weight 0 and bias -inf; one without positives, or without
    negatives, of several sigmoids has weight 0 and bias -inf or inf. With two classes, weight and
    bias are the halves of one sigmoid's, with either sign: the objective is the sigmoid's.
    """

    weight: np.ndarray  # [K, D] fp64
    bias: np.ndarray  # [K] fp64
    C: float
    objective: float
    iterations: int  # Newton steps
    gap: float  # estimated relative distance of the objective to its optimum before the last step

    def scores(self, features: np.ndarray) -> np.ndarray:
        """[n, D] -> [n, K], fp64."""
        return np.asarray(features, np.float64) @ self.weight.T + self.bias

    def as_head(self, class_names: Sequence[str] = (), identity: str = "") -> LinearHead:
        """Makes a fp32 classifier of cls tokens of the last block."""
        return LinearHead(
            self.weight.astype(np.float32),
            self.bias.astype(np.float32),
            blocks=1,
            avgpool=False,
            class_names=tuple(class_names),
            identity=identity,
            metadata={"name": f"logistic regression, C={self.C:.3g}", "C": self.C},
        )


class Fitter:
    """A training set on the device; maps the classes that occur to all K.

    Under a mesh (`jax.set_mesh`) rows are split over its devices. `features` [n, D] are as they
    are, not normalised; `labels` [n] class numbers, or [n, classes] of 1, 0 and -1 (unknown).
    Raises EvaluationError for features that are not finite, labels that do not fit, or one class
    only.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int) -> None:
        labels = np.asarray(labels)
        _check(features, labels, classes)
        targets, known, self._bias = _targets(labels, classes)
        # The classes that have something to fit.
        self._solved = np.flatnonzero(np.isnan(self._bias))
        self._kind = "sigmoid" if labels.ndim == 2 or len(self._solved) == 2 else "softmax"
        self._single = labels.ndim == 1 and self._kind == "sigmoid"
        # TPUs have no fp64 units. There gradients have fp32 products, too; their residuals are
        # exact to fp32's relative precision however certain the model is, which on the same data
        # leaves the objective within 2e-7 of the optimum.
        self._dtype = np.float32 if jax.default_backend() == "tpu" else np.float64
        targets = targets[1:] if self._single else targets
        with self._precision():
            self._data = place(features, targets, known, self._dtype)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """64-bit arrays within the block alone; the rest of the program is 32-bit."""
        return jax.enable_x64(self._dtype is np.float64)

    def path(
        self,
        values: Sequence[float],
        *,
        init: Model | None = None,
        tol: float = TOLERANCE,
        max_iter: int = 1000,
    ) -> Iterator[Model]:
        """Yields the model of every C, in their order; ascending ones are fastest."""
        how = {"kind": self._kind, "tol": tol, "max_iter": max_iter}
        found = solve_path(self._data, values, init=init and self._own(init), **how)
        while True:  # by hand, so that the caller's code between two models stays 32-bit
            with self._precision():
                solution = next(found, None)
            if solution is None:
                return
            yield self._model(solution)

    def _own(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = model.weight[self._solved], model.bias[self._solved]
        bias = np.where(np.isfinite(bias), bias, 0)  # a class that the other data did not have
        if self._single:
            return weight[1:] - weight[:1], bias[1:] - bias[:1]
        return weight, bias

    def _model(self, solution: Solution) -> Model:
        weight, bias = solution.weight, solution.bias
        if self._single:
            weight, bias = (np.concatenate([-half, half]) for half in (weight / 2, bias / 2))
        every, intercept = np.zeros((len(self._bias), weight.shape[1])), self._bias.copy()
        every[self._solved], intercept[self._solved] = weight, bias
        objective, iterations, gap = solution.objective, solution.iterations, solution.gap
        return Model(every, intercept, float(solution.C), objective, iterations, gap)


def _targets(labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets and weights of the classes to fit, and each class's bias, nan where it is fitted."""
    if labels.ndim == 2:
        positive, known = labels.T == 1, labels.T >= 0
        some, all_ = positive.any(axis=1), ~(known & ~positive).any(axis=1)
        bias = np.where(some & ~all_, np.nan, np.where(some, np.inf, -np.inf))
        return positive[np.isnan(bias)], known[np.isnan(bias)], bias
    bias = np.full(classes, -np.inf)
    present = np.unique(labels)
    bias[present] = np.nan
    return labels[None] == present[:, None], np.ones((1, len(labels))), bias


def _check(features: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if features.ndim != 2 or len(features) != len(labels) or not len(features):
        raise EvaluationError(
            f"features of shape {features.shape} and labels of shape {labels.shape}; logistic "
            "regression needs one row of features for each label, and at least one"
        )
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise EvaluationError(
            f"{bad} of {len(features)} rows of features hold nan or infinity, so there is nothing "
            "to fit; check the checkpoint that they come from"
        )
    least, most = labels.min(), labels.max()
    if labels.ndim == 2:
        if labels.shape[1] != classes or not np.isin(labels, (-1, 0, 1)).all():
            raise EvaluationError(
                f"labels of shape {labels.shape} from {least} to {most}; several labels an image "
                f"are one of -1, 0, 1 for each of the {classes} classes"
            )
    elif least < 0 or most >= classes:
        raise EvaluationError(
            f"labels run from {least} to {most}, but there are {classes} classes; leave out rows "
            "without a class"
        )
    elif least == most:
        raise EvaluationError(
            f"all {len(labels)} training rows are of class {least}; give rows of at least "
            "two classes"
        )


def fit(
    fitter: Fitter,
    C: float,
    *,
    init: Model | None = None,
    max_iter: int = 1000,
    tol: float = TOLERANCE,
) -> Model:
    """Finds the optimum for one C, the weight of the losses as in scikit-learn.

    It starts from `init`, a model of similar data or C; without one, smaller C's lead there.
    `max_iter` is in Newton steps, `tol` relative on the objective, see `newton.solve_path`. Raises
    EvaluationError for a C that is not positive.
    """
    check_values([C])
    if init is None:
        # From zero, a large C takes many halved steps; half decades, solved roughly, lead to it.
        smaller = [v for v in 10 ** np.arange(-6, np.log10(C), 0.5) if v < C]
        rough = list(fitter.path(smaller, tol=1e-3, max_iter=max_iter))
        init = rough[-1] if rough else None
    return next(fitter.path([C], init=init, tol=tol, max_iter=max_iter))


def check_values(values: Sequence[float]) -> None:
    """Raises EvaluationError for no C, or one that is not positive and finite."""
    if not len(values) or not all(np.isfinite(C) and C > 0 for C in values):
        raise EvaluationError(
            f"C must be positive and finite, at least one value; got {list(values)}"
        )
