"""Targets and cross-entropy without any array of rows x prototypes.

For 65,536 prototypes and the 3,770 masked patches of 64 images one fp32 matrix of logits is 988 MB,
and a step holds several. Here both sides stay factored: a score is <feature, prototype>, and a
target is exp(<feature, prototype> / temp + column + row), which is a form of softmax centering and
of Sinkhorn-Knopp alike. Prototypes are walked through in blocks, scores are computed where they are
needed and dropped: the memory does not depend on K. It costs arithmetic: the teacher's scores are
computed 3 times with centering and 6 times with Sinkhorn-Knopp, the student's twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dinov2_jax.models.head import Scores
from dinov2_jax.parallel.constraints import constrain_prototypes, constrain_scores, tensor_shards
from dinov2_jax.ssl.targets import SINKHORN_ITERATIONS, max_over_rows


@struct.dataclass
class FactoredTargets:
    """Targets sum_T exp(<features, prototypes> / temp + column + row), [..., K] if written out.

    Attributes:
      scores: the teacher's, features [..., T, d]: T targets are added up.
      column: [K].
      row: [..., T]; -inf for padding, whose targets are 0.
      temp: teacher temperature.
    """

    scores: Scores
    column: Array
    row: Array
    temp: Array

    def map_rows(self, take: Callable[[Array], Array]) -> "FactoredTargets":
        """`take`, a choice along the leading axis, of all that has one."""
        scores = self.scores.replace(features=take(self.scores.features))
        return self.replace(scores=scores, row=take(self.row))

    def swap_crops(self) -> "FactoredTargets":
        """[..., 2, 1] targets of crops 1 and 2 as those of crops 2 and 1."""
        features, row = jnp.flip(self.scores.features, -3), jnp.flip(self.row, -2)
        return self.replace(scores=self.scores.replace(features=features), row=row)

    def add_crops(self) -> "FactoredTargets":
        """[..., 2, 1] targets of two crops as their sum, [..., 1, 2]."""
        features, row = jnp.swapaxes(self.scores.features, -3, -2), jnp.swapaxes(self.row, -2, -1)
        return self.replace(scores=self.scores.replace(features=features), row=row)


def _blocks(x: Array, block: int) -> Array:
    """[K, ...] -> [K / block, block, ...], the axis that is scanned.

    Prototypes may be split over devices: a block then takes its share from each, so that all of
    them work on every block and none sends its prototypes away.
    """
    shards = _shards(block)
    apart = x.reshape(shards, -1, block // shards, *x.shape[1:])
    return jnp.swapaxes(apart, 0, 1).reshape(-1, block, *x.shape[1:])


def _join_blocks(x: Array) -> Array:
    """The way back, [K / block, block, ...] -> [K, ...]."""
    number, block = x.shape[:2]
    shards = _shards(block)
    apart = x.reshape(number, shards, block // shards, *x.shape[2:])
    return jnp.swapaxes(apart, 0, 1).reshape(number * block, *x.shape[2:])


def _shards(block: int) -> int:
    shards = tensor_shards()
    return 1 if block % shards else shards


def _logits(features: Array, prototypes: Array) -> Array:
    f32 = {"preferred_element_type": jnp.float32}
    return constrain_scores(jnp.einsum("...d,kd->...k", features, prototypes, **f32))


def _fold(step: Callable[..., Any], start: Any, scores: Scores, *columns: Array) -> Any:
    """Scans step(carry, (block of prototypes, column blocks...)) over the prototypes."""
    blocks = tuple(_blocks(x, scores.block) for x in (scores.prototypes, *columns))
    return jax.lax.scan(step, start, tuple(constrain_prototypes(x, 1) for x in blocks))


def _logsumexp_step(peak: Array, total: Array, scores: Array) -> tuple[Array, Array]:
    """One block more in a running log-sum-exp, kept as (maximum, sum relative to it)."""
    higher = jnp.maximum(peak, scores.max(-1))
    total = total * jnp.exp(peak - higher) + jnp.exp(scores - higher[..., None]).sum(-1)
    return higher, total


def center_targets(scores: Scores, center: Array, temp: Array) -> FactoredTargets:
    """softmax((t - c) / temp), as `targets.softmax_center`; scores [..., d], center [K]."""

    def step(carry: Any, blocks: Any) -> Any:
        block, column = blocks
        shifted = _logits(scores.features, block) / temp + column
        return _logsumexp_step(*carry, shifted), None

    rows, column = scores.features.shape[:-1], -center / temp
    start = jnp.full(rows, -jnp.inf), jnp.zeros(rows)
    (peak, total), _ = _fold(step, start, scores, column)
    return _one_target(scores, column, -peak - jnp.log(total), temp)


def _one_target(scores: Scores, column: Array, row: Array, temp: Array) -> FactoredTargets:
    scores = scores.replace(features=scores.features[..., None, :])
    return FactoredTargets(scores, column, row[..., None], jnp.asarray(temp, jnp.float32))


def sinkhorn_targets(
    scores: Scores, temp: Array, valid: Array | None = None, iterations: int = SINKHORN_ITERATIONS
) -> FactoredTargets:
    """As `targets.sinkhorn_knopp`: the same shifts and scaling vectors, a block at a time.

    Args:
      scores: [..., d], all leading axes are rows.
      valid: [...] True for real rows.
    """
    features, prototypes = scores.features, len(scores.prototypes)
    rows = jnp.ones(features.shape[:-1], bool) if valid is None else valid
    count, tiny = rows.sum(), jnp.finfo(jnp.float32).tiny

    def shift(highest: Array, blocks: Any) -> tuple[Array, Array]:
        scaled = _logits(features, blocks[0]) / temp
        column = max_over_rows(jnp.where(rows[..., None], scaled, -jnp.inf))
        return jnp.maximum(highest, (scaled - column).max(-1)), column

    row_shift, shifts = _fold(shift, jnp.full(rows.shape, -jnp.inf), scores)
    shifts = _join_blocks(shifts)

    def scale(v: Array) -> tuple[Array, Array]:
        def step(row_sums: Array, blocks: Any) -> tuple[Array, Array]:
            block, column = blocks
            matrix = jnp.exp(_logits(features, block) / temp - column - row_shift[..., None])
            sums = jnp.einsum("...,...k->k", v, matrix, precision="highest")
            u = 1.0 / (prototypes * jnp.maximum(sums, tiny))
            return row_sums + jnp.einsum("...k,k->...", matrix, u, precision="highest"), u

        row_sums, u = _fold(step, jnp.zeros(rows.shape), scores, shifts)
        return jnp.where(rows, 1.0 / (count * jnp.maximum(row_sums, tiny)), 0.0), _join_blocks(u)

    v, u = jnp.where(rows, jnp.exp(row_shift), 0.0), jnp.ones((prototypes,))
    for _ in range(iterations):
        v, u = scale(v)
    return _one_target(scores, jnp.log(u) - shifts, jnp.log(v * count) - row_shift, temp)


def _target_block(targets: FactoredTargets, block: Array, column: Array) -> Array:
    """The targets of one block of prototypes, added up over T: [..., block]."""
    logits = _logits(targets.scores.features, block) / targets.temp
    return jnp.exp(logits + column + targets.row[..., None]).sum(-2)


@jax.custom_vjp
def cross_entropy(student: Scores, targets: FactoredTargets, temp: float) -> Array:
    """-sum_k t_k log softmax(scores / temp)_k, as `losses.cross_entropy`.

    Args:
      student: scores [..., S, d].
      targets: rows [..., S, T], or [..., 1, T] where all S have the same; no gradient.
      temp: student temperature.

    Returns:
      [..., S] fp32.
    """
    return _cross_entropy_forward(student, targets, temp)[0]


def _cross_entropy_forward(student: Scores, targets: FactoredTargets, temp: float) -> Any:
    def step(carry: Any, blocks: Any) -> Any:
        block, teacher_block, column = blocks
        peak, exponentials, total, inner = carry
        scaled = _logits(student.features, block) / temp
        goal = _target_block(targets, teacher_block, column)
        peak, exponentials = _logsumexp_step(peak, exponentials, scaled)
        inner = inner + jnp.sum(goal * scaled, axis=-1)
        return (peak, exponentials, total + goal.sum(-1), inner), None

    rows = student.features.shape[:-1]
    zeros, goal_rows = jnp.zeros(rows), targets.row.shape[:-1]
    start = jnp.full(rows, -jnp.inf), zeros, jnp.zeros(goal_rows), zeros
    (peak, exponentials, total, inner), _ = _fold(
        step, start, student, targets.scores.prototypes, targets.column
    )
    lse = peak + jnp.log(exponentials)
    return total * lse - inner, (student, targets, temp, total, lse)


def _cross_entropy_backward(residuals: Any, cotangent: Array) -> tuple[Scores, None, None]:
    student, targets, temp, total, lse = residuals
    features = student.features

    def step(into_features: Array, blocks: Any) -> tuple[Array, Array]:
        block, teacher_block, column = blocks
        softmax = jnp.exp(_logits(features, block) / temp - lse[..., None])
        goal = _target_block(targets, teacher_block, column)
        error = (cotangent / temp)[..., None] * (total[..., None] * softmax - goal)
        error = error.astype(features.dtype)
        f32 = {"preferred_element_type": jnp.float32}
        into_block = jnp.einsum("...d,...k->kd", features, error, **f32)
        return into_features + jnp.einsum("...k,kd->...d", error, block, **f32), into_block

    into_features, into_prototypes = _fold(
        step, jnp.zeros(features.shape), student, targets.scores.prototypes, targets.column
    )
    like = student.prototypes
    gradient = student.replace(
        features=into_features.astype(features.dtype),
        prototypes=_join_blocks(into_prototypes).astype(like.dtype),
    )
    return gradient, None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def entropy_and_choice(targets: FactoredTargets) -> tuple[Array, Array]:
    """Entropy of each target in nats, and its first choice among the prototypes; both [...].

    Args:
      targets: one a row, [..., 1].
    """

    def step(carry: Any, blocks: Any) -> Any:
        block, column, number = blocks
        entropy, best, choice = carry
        exponent = _logits(targets.scores.features[..., 0, :], block) / targets.temp
        exponent += column + targets.row
        goal = jnp.exp(exponent)
        entropy -= jnp.sum(jnp.where(goal > 0, goal * exponent, 0.0), axis=-1)
        top = exponent.max(-1)
        choice = jnp.where(top > best, number[jnp.argmax(exponent, axis=-1)], choice)
        return (entropy, jnp.maximum(best, top), choice), None

    rows = targets.row.shape[:-1]
    start = jnp.zeros(rows), jnp.full(rows, -jnp.inf), jnp.zeros(rows, jnp.int32)
    numbers = jnp.arange(targets.column.shape[0], dtype=jnp.int32)
    (entropy, _, choice), _ = _fold(step, start, targets.scores, targets.column, numbers)
    return entropy, choice
