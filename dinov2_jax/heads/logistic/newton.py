"""Logistic regression to its optimum: Newton's method in fp64, its linear systems in fp32.

A Newton step needs an exact gradient but only a rough direction. So gradient and objective are fp64
(one pass over the data a step), and the direction comes from conjugate gradients with fp32 products
of the Hessian, preconditioned by a Kronecker product (features x classes) of the weighted
covariances. Arrays have the classes first, [K, n]: sums over classes then run along memory's rows,
and a mesh splits n, the last axis.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, NamedSharding, P

from dinov2_jax.parallel.constraints import replicate

Pair = tuple[Array, Array]  # weight [K, D] and bias [K], or a gradient or direction of them

CG_STEPS = 250
CG_RESIDUAL = 0.1  # of the gradient, both in the norm of the preconditioner
STALE_CG_STEPS = 8  # beyond these, a new preconditioner is cheaper than more products
BACKTRACKS = 40


class Problem(NamedTuple):
    """Data on the device. Rows beyond the real ones are zeros of weight 0."""

    x: Array  # [n, D] fp32, features minus `mean`
    wide: Array  # the same in the precision of gradients
    targets: Array  # [K, n] bool
    weights: Array  # [1 or K, n], 0 where a target does not count
    mean: np.ndarray  # [D] fp64, on the host


class Solution(NamedTuple):
    """Optimum for one C: weight [K, D] and bias [K] in fp64 for the features as they were given.

    `gap` is the estimated distance of the objective from the optimum, relative, before the last
    step; `iterations` the Newton steps.
    """

    C: float
    weight: np.ndarray
    bias: np.ndarray
    objective: float
    iterations: int
    gap: float


class Point(NamedTuple):
    """Weights where the objective has been evaluated. p: [K, n] fp32, see `_probabilities`."""

    at: Pair
    objective: Array
    loss: Array
    gradient: Pair
    p: Array


class Preconditioner(NamedTuple):
    """Eigenvalues and vectors of the weighted covariances of features and classes."""

    features: Array
    feature_basis: Array
    classes: Array
    class_basis: Array
    mean: Array
    total: Array


# ------------------------------------------------------------------------------------ objective
def place(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, dtype: type = np.float64
) -> Problem:
    """Centres the features [n, D] and puts all on the device; the mesh that is set splits rows.

    Centring changes only the optimum's intercept, and keeps digits that fp32 would lose where the
    mean of the features is far larger than their spread.
    """
    mesh = jax.sharding.get_mesh()
    mean = np.mean(features, axis=0, dtype=np.float64)
    extra = 0 if mesh.empty else -len(features) % mesh.size
    wide = np.zeros((len(features) + extra, len(mean)))
    np.subtract(features, mean, out=wide[: len(features)])
    targets, weights = (np.pad(a, ((0, 0), (0, extra))) for a in (targets, weights))

    def put(x: np.ndarray, *before: None) -> Array:
        if mesh.empty:
            return jnp.asarray(x)
        return jax.device_put(x, NamedSharding(mesh, P(*before, mesh.axis_names)))

    x = put(wide.astype(np.float32))
    wide = x if dtype == np.float32 else put(wide)
    return Problem(x, wide, put(targets, None), put(weights.astype(np.float32), None), mean)


def _own(values: Array, targets: Array) -> Array:
    """The value of each row's own class, [1, n]."""
    return jnp.where(targets, values, 0).sum(axis=0, keepdims=True)


def _probabilities(z: Array, targets: Array, kind: str) -> tuple[Array, Array, Array]:
    """Losses, residuals and probabilities of logits [K, n], each with full relative precision.

    For a class that is nearly certain, p - 1 and log p would be rounding errors. Each row's own
    class is therefore left out of the sums; with "softmax", p is 0 at a row's own class.
    """
    if kind == "sigmoid":
        sign = jnp.where(targets, -1, 1).astype(z.dtype)
        p = jax.nn.sigmoid(sign * z)  # probability of being wrong
        return jax.nn.softplus(sign * z), sign * p, p
    z = z - z.max(axis=0)
    e = jnp.exp(z)
    own = _own(z, targets)
    others = jnp.where(targets, 0, e).sum(axis=0, keepdims=True)
    total = jnp.exp(own) + others
    loss = jnp.where(own == 0, jnp.log1p(others), jnp.log(total) - own)
    p = e / total
    return loss, jnp.where(targets, -others / total, p), jnp.where(targets, 0, p)


@functools.partial(jax.jit, static_argnames="kind")
def _evaluate(data: Problem, at: Pair, C: Array, kind: str) -> Point:
    w, b = at
    z = jnp.matmul(w, data.wide.T, precision="highest") + b[:, None]
    loss, residual, p = _probabilities(z, data.targets, kind)
    loss = (loss * data.weights).sum()
    residual = residual * data.weights
    grad_w = replicate(w + C * jnp.matmul(residual, data.wide, precision="highest"))
    grad_b = replicate(C * residual.sum(axis=1))
    objective = 0.5 * (w**2).sum() + C * loss
    return Point(at, objective, loss, (grad_w, grad_b), p.astype(jnp.float32))


def _curvature(data: Problem, p: Array, u: Array, kind: str) -> Array:
    """Change of the residuals [K, n] when the logits change by u."""
    if kind == "sigmoid":
        return data.weights * p * (1 - p) * u
    u = u - _own(u, data.targets)
    mean = (p * u).sum(axis=0, keepdims=True)
    own = p.sum(axis=0, keepdims=True) - 1  # minus the probability of the own class
    return data.weights * jnp.where(data.targets, own * mean, p * (u - mean))


# --------------------------------------------------------------------------------- Newton's step
@functools.partial(jax.jit, static_argnames="kind")
def _precondition(data: Problem, p: Array, kind: str) -> Preconditioner:
    """The Hessian of the loss as (features' covariance) x (classes' covariance), diagonalised."""
    if kind == "sigmoid":
        q = data.weights * p * (1 - p)
        row, classes, class_basis = q.sum(axis=0), q.sum(axis=1), jnp.eye(len(p), dtype=p.dtype)
    else:
        p = jnp.where(data.targets, 1 - p.sum(axis=0), p)
        # diag(p) - p p', summed over rows, from its off-diagonal entries, which do not cancel.
        off = jnp.matmul(p * data.weights, p.T, precision="highest")
        off = off * (1 - jnp.eye(len(p), dtype=p.dtype))
        classes, class_basis = jnp.linalg.eigh(jnp.diag(off.sum(axis=1)) - off)
        row = (data.weights * p * (1 - p)).sum(axis=0)
    total = jnp.maximum(row.sum(), 1e-30)
    mean = row @ data.x / total
    covariance = jnp.matmul((data.x * row[:, None]).T, data.x) - total * jnp.outer(mean, mean)
    features, feature_basis = jnp.linalg.eigh(covariance)
    features, classes = jnp.maximum(features, 0), jnp.maximum(classes, 0)
    return Preconditioner(features, feature_basis, classes, class_basis, mean, total)


def _apply(pre: Preconditioner, gradient: Pair, C: Array) -> Pair:
    """Multiplies a gradient by an approximate inverse of the Hessian."""
    grad_w, grad_b = gradient
    rotated = pre.class_basis.T @ (grad_w - jnp.outer(grad_b, pre.mean)) @ pre.feature_basis
    weight = C * pre.classes[:, None] * pre.features / pre.total
    w = pre.class_basis @ (rotated / (1 + weight)) @ pre.feature_basis.T
    curved = pre.classes > 1e-6 * pre.classes.max()  # adding one number to all logits is not
    inverse = jnp.where(curved, 1 / (C * jnp.where(curved, pre.classes, 1)), 0)
    b = pre.class_basis @ (inverse * (pre.class_basis.T @ grad_b))
    return w, b - w @ pre.mean


def _dot(a: Pair, b: Pair) -> Array:
    return (a[0] * b[0]).sum() + (a[1] * b[1]).sum()


def _add(a: Pair, scale: Array | float, b: Pair) -> Pair:
    return a[0] + scale * b[0], a[1] + scale * b[1]


@functools.partial(jax.jit, static_argnames="kind")
def _direction(data: Problem, pre: Preconditioner, at: Point, C: Array, kind: str):
    """Approximates Newton's direction: it, its slope, the expected decrease, and the CG steps.

    The gradient is scaled to length 1, so that fp32 neither over- nor underflows.
    """
    C = C.astype(jnp.float32)
    size = jnp.sqrt(_dot(at.gradient, at.gradient)) + 1e-300
    wanted = tuple((-g / size).astype(jnp.float32) for g in at.gradient)

    def product(v):
        u = jnp.matmul(v[0], data.x.T, precision="highest") + v[1][:, None]
        change = _curvature(data, at.p, u, kind)
        grad = jnp.matmul(change, data.x, precision="highest")
        return v[0] + C * grad, C * change.sum(axis=1)

    def go_on(state):
        _, _, _, left, steps, bent = state
        return (left > CG_RESIDUAL**2 * first) & (steps < CG_STEPS) & bent

    def step(state):
        x, r, d, left, steps, _ = state
        h = product(d)
        bend = _dot(d, h)
        bent = bend > 0  # rounding may hide that the Hessian is positive
        length = jnp.where(bent, left / jnp.where(bent, bend, 1), 0)
        x, r = _add(x, length, d), _add(r, -length, h)
        z = _apply(pre, r, C)
        new = _dot(r, z)
        return x, r, _add(z, new / left, d), new, steps + 1, bent

    z = _apply(pre, wanted, C)
    first = _dot(wanted, z)
    begin = jax.tree.map(jnp.zeros_like, wanted), wanted, z, first, 0, first > 0
    x, _, _, left, steps, _ = jax.lax.while_loop(go_on, step, begin)
    x = tuple(size * part for part in x)
    slope = _dot(at.gradient, x)
    return x, slope, 0.5 * (size**2 * left - slope), steps


def _newton(
    data: Problem, at: Point, C: float, pre: Preconditioner | None, kind: str, tol: float, most: int
) -> tuple[Point, Preconditioner, float, int]:
    """Goes from `at` to the optimum for C; also the estimated gap and the number of steps."""
    dtype = data.wide.dtype
    gap, size = np.inf, dtype.type(C)
    noise = 16 * float(jnp.finfo(dtype).eps)  # rounding must not look like a failed step
    for iterations in range(1, most + 1):  # noqa: B007 - the last one is returned
        if pre is None:
            pre = _precondition(data, at.p, kind)
        step, *numbers = _direction(data, pre, at, size, kind)
        slope, left, products, value = map(float, jax.device_get((*numbers, at.objective)))
        gap = left / value
        length = 1.0
        for _ in range(BACKTRACKS):
            new = _evaluate(data, _add(at.at, length, step), size, kind)
            if float(new.objective) <= value + 1e-4 * length * slope + noise * value:
                break
            length /= 2
        else:
            break  # no lower point within rounding
        at = new
        if products > STALE_CG_STEPS or length < 1:
            pre = None
        if gap <= tol:
            break
    return at, pre, gap, iterations


# ------------------------------------------------------------------------------------------ path
def solve_path(
    data: Problem,
    values: Sequence[float],
    *,
    kind: str,
    tol: float,
    max_iter: int,
    init: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[Solution]:
    """Yields the optimum for each C of `values`, each started from those before it.

    Args:
      data: from `place`.
      values: ascending is fastest.
      kind: "softmax" or "sigmoid".
      tol: on the estimated relative distance of the objective to its optimum. The step that this
        estimate comes from is still taken, which leaves about a hundredth of it.
      max_iter: Newton steps a value.
      init: weight [K, D] and bias [K] to start from, for the features as given; zeros by default.
    """
    dtype = data.wide.dtype
    # numpy arrays are replicated on every device, also with several processes.
    classes, dim = len(data.targets), data.x.shape[1]
    w, b = init or (np.zeros((classes, dim)), np.zeros(classes))
    start = w.astype(dtype), (b + w @ data.mean).astype(dtype)
    found: list[tuple[float, Point]] = []
    pre = None
    for C in values:
        at = _start(data, found, C, kind) if found else _evaluate(data, start, dtype.type(C), kind)
        at, pre, gap, iterations = _newton(data, at, C, pre, kind, tol, max_iter)
        found = [*[pair for pair in found if pair[0] != C][-2:], (C, at)]
        weight, bias = (np.asarray(part, np.float64) for part in at.at)
        yield Solution(C, weight, bias - weight @ data.mean, float(at.objective), iterations, gap)


def _start(data: Problem, found: Sequence[tuple[float, Point]], C: float, kind: str) -> Point:
    """The better start: a polynomial in log C through the last three solutions, or the last."""
    logs = np.array([np.log(c) for c, _ in found])
    size = data.wide.dtype.type(C)
    guess = 0.0, 0.0
    for i, (_, point) in enumerate(found):
        others = np.delete(logs, i)
        guess = _add(guess, float(np.prod((np.log(C) - others) / (logs[i] - others))), point.at)
    guess = _evaluate(data, guess, size, kind)
    last = found[-1][1]
    # The last solution's loss does not depend on C: no need to evaluate it again.
    if float(guess.objective) <= float(0.5 * (last.at[0] ** 2).sum() + C * last.loss):
        return guess
    return _evaluate(data, last.at, size, kind)
