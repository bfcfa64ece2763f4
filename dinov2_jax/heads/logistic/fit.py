"""Fits logistic regression to one training set, for one or many strengths of the penalty.

1/2 |W|^2 + C sum of losses, intercept fitted and not penalised; softmax for labels [n] (two classes
by one sigmoid, as scikit-learn and cuML do), one sigmoid a class for labels [n, K] of 1, 0 and -1
(unknown). Every C is solved to its optimum, see newton.py.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.heads.logistic.newton import Problem, Solution, place, solve_path

C_VALUES = tuple(10 ** np.linspace(-6, 5, 45))
TOLERANCE = 1e-7  # relative, of the objective before the last step; see newton.solve_path


@dataclasses.dataclass(frozen=True)
class Model:
    """A fitted classifier: scores = features weight' + bias.

    A class without training rows has weight 0 and bias -inf; one without positives, or without
    negatives, of several sigmoids has weight 0 and bias -inf or inf.

    Attributes:
      weight [K, D], bias [K]: fp64. With two classes, the halves of one sigmoid's, with either
        sign: the objective is the sigmoid's.
      C, objective, iterations: of the fit (Newton steps).
      gap: estimated relative distance of the objective to its optimum before the last step.
    """

    weight: np.ndarray
    bias: np.ndarray
    C: float
    objective: float
    iterations: int
    gap: float

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

    Under a mesh (`jax.set_mesh`) rows are split over its devices.

    Args:
      features [n, D]: as they are, not normalised.
      labels: [n] class numbers, or [n, classes] of 1, 0 and -1 (unknown).

    Raises:
      EvaluationError: for features that are not finite, labels that do not fit, or one class only.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int) -> None:
        labels = np.asarray(labels)
        _check(features, labels, classes)
        self._classes = classes
        self._targets, known, self._bias = _targets(labels, classes)
        self._kind = "sigmoid" if labels.ndim == 2 or len(self.solved) == 2 else "softmax"
        self._single = labels.ndim == 1 and self._kind == "sigmoid"
        targets = self._targets[1:] if self._single else self._targets
        with self.precision():
            self._data: Problem = place(features, targets, known, _mesh(), self._dtype)

    @property
    def solved(self) -> np.ndarray:
        """The classes that have something to fit."""
        return np.flatnonzero(np.isnan(self._bias))

    @property
    def _dtype(self) -> type:
        # TPUs have no fp64 units. There gradients have fp32 products, too; their residuals are
        # exact to fp32's relative precision however certain the model is, which on the same data
        # leaves the objective within 2e-7 of the optimum.
        return np.float32 if jax.default_backend() == "tpu" else np.float64

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """64-bit arrays within the block alone; the rest of the program is 32-bit."""
        return jax.enable_x64(self._dtype is np.float64)

    def path(
        self,
        values: Sequence[float],
        each: Callable[[Model], None],
        *,
        init: Model | None = None,
        tol: float = TOLERANCE,
        max_iter: int = 1000,
    ) -> None:
        """Calls `each` with the model of every C, in their order; ascending ones are fastest."""
        start = None if init is None else self._own(init)
        with self.precision():
            found = solve_path(
                self._data, values, kind=self._kind, tol=tol, max_iter=max_iter, init=start
            )
            for solution in found:
                each(self._model(solution))

    def _own(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = model.weight[self.solved], model.bias[self.solved]
        bias = np.where(np.isfinite(bias), bias, 0)  # a class that the other data did not have
        if self._single:
            return weight[1:] - weight[:1], bias[1:] - bias[:1]
        return weight, bias

    def _model(self, solution: Solution) -> Model:
        weight, bias = solution.weight, solution.bias
        if self._single:
            weight, bias = (np.concatenate([-half, half]) for half in (weight / 2, bias / 2))
        every, intercept = np.zeros((self._classes, weight.shape[1])), self._bias.copy()
        every[self.solved], intercept[self.solved] = weight, bias
        return Model(
            every,
            intercept,
            float(solution.C),
            solution.objective,
            solution.iterations,
            solution.gap,
        )


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
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise EvaluationError(
            f"{bad} of {len(features)} rows of features hold nan or infinity, so there is nothing "
            "to fit; check the checkpoint that they come from"
        )
    if labels.ndim == 2:
        if labels.shape[1] != classes or not np.isin(labels, (-1, 0, 1)).all():
            raise EvaluationError(
                f"labels of shape {labels.shape} from {labels.min()} to {labels.max()}; several "
                f"labels an image are one of -1, 0, 1 for each of the {classes} classes"
            )
    elif labels.min() < 0 or labels.max() >= classes:
        raise EvaluationError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {classes} classes; "
            "leave out rows without a class"
        )
    if labels.ndim == 1 and labels.min() == labels.max():
        raise EvaluationError(
            f"all {len(labels)} training rows are of class {labels[0]}; give rows of at least two "
            "classes"
        )


def _mesh() -> Mesh | None:
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def fit(
    fitter: Fitter,
    C: float,
    *,
    init: Model | None = None,
    max_iter: int = 1000,
    tol: float = TOLERANCE,
) -> Model:
    """Finds the optimum for one C.

    Args:
      C: weight of the losses, scikit-learn's convention: 1/2 |W|^2 + C sum of losses.
      init: a model of similar data or C to start from. Without one, smaller C's lead there.
      max_iter: Newton steps.
      tol: relative, on the objective, see `newton.solve_path`.

    Raises:
      EvaluationError: for a C that is not positive.
    """
    check_values([C])
    found: list[Model] = []
    if init is None:
        # From zero, a large C takes many halved steps; half decades, solved roughly, lead to it.
        smaller = [v for v in 10 ** np.arange(-6, np.log10(C), 0.5) if v < C]
        fitter.path(smaller, found.append, tol=1e-3, max_iter=max_iter)
        init = found[-1] if found else None
    fitter.path([C], found.append, init=init, tol=tol, max_iter=max_iter)
    return found[-1]


def check_values(values: Sequence[float]) -> None:
    """Raises EvaluationError for no C, or one that is not positive and finite."""
    if not len(values) or not all(np.isfinite(C) and C > 0 for C in values):
        raise EvaluationError(
            f"C must be positive and finite, at least one value; got {list(values)}"
        )
