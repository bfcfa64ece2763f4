"""Scores and targets without any array of rows x prototypes.

For 65,536 prototypes and the 3,770 masked patches of 64 images one fp32 matrix of scores is 988 MB,
and a step holds several. Here both sides stay factored: a score is <feature, prototype>, and a
target is exp(<feature, prototype> / temp + column + row), which covers softmax centering and
Sinkhorn-Knopp. All functions scan over blocks of prototypes, compute the scores of a block and drop
them, so the memory does not depend on K. The price is arithmetic: the teacher's scores are computed
3 times with centering and 6 times with Sinkhorn-Knopp, the student's twice.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dinov2_jax.ops.max_over_rows import max_over_rows
from dinov2_jax.ops.weight_product import weight_product
from dinov2_jax.parallel.constraints import constrain_columns, constrain_prototypes, tensor_shards
from dinov2_jax.ssl.centering import SINKHORN_ITERATIONS, masked_group_mean

STUDENT_TEMP = 0.1

_einsum_f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@struct.dataclass
class FactoredScores:
    """Scores [..., K] as features [..., d] times prototypes [K, d]; methods as `DenseScores`.

    Attributes:
      features: unit vectors, in the compute dtype.
      prototypes: weight-normalised, in the compute dtype.
      block: number of prototypes to compute at a time; divides K.
    """

    features: Array
    prototypes: Array
    block: int = struct.field(pytree_node=False)

    def map_rows(self, change: Callable[[Array], Array]) -> "FactoredScores":
        return self.replace(features=change(self.features))

    def group_mean(self, valid: Array | None = None) -> Array:
        return group_mean_score(self.features, self.prototypes, valid)

    def softmax_center(self, center: Array, temp: Array | float) -> "FactoredTargets":
        # One pass computes the log-sum-exp of each row.
        def step(carry: Any, blocks: Any) -> Any:
            block, column = blocks
            shifted = inner_products(self.features, block) / temp + column
            return _logsumexp_step(*carry, shifted), None

        rows, column = self.features.shape[:-1], -center / temp
        start = jnp.full(rows, -jnp.inf), jnp.zeros(rows)
        (peak, total), _ = _fold(step, start, self, column)
        return _one_target(self, column, -peak - jnp.log(total), temp)

    def sinkhorn_knopp(self, temp: Array | float, valid: Array | None = None) -> "FactoredTargets":
        # The shifts and scaling vectors of `centering.sinkhorn_knopp`, a block at a time.
        features, prototypes = self.features, len(self.prototypes)
        rows = jnp.ones(features.shape[:-1], bool) if valid is None else valid
        count, tiny = rows.sum(), jnp.finfo(jnp.float32).tiny

        def shift(highest: Array, blocks: Any) -> tuple[Array, Array]:
            scaled = inner_products(features, blocks[0]) / temp
            column = max_over_rows(jnp.where(rows[..., None], scaled, -jnp.inf))
            return jnp.maximum(highest, (scaled - column).max(-1)), column

        row_shift, shifts = _fold(shift, jnp.full(rows.shape, -jnp.inf), self)
        shifts = _join_blocks(shifts)

        def scale(v: Array) -> tuple[Array, Array]:
            def step(row_sums: Array, blocks: Any) -> tuple[Array, Array]:
                block, column = blocks
                matrix = jnp.exp(
                    inner_products(features, block) / temp - column - row_shift[..., None]
                )
                sums = jnp.einsum("...,...k->k", v, matrix, precision="highest")
                u = 1.0 / (prototypes * jnp.maximum(sums, tiny))
                return row_sums + jnp.einsum("...k,k->...", matrix, u, precision="highest"), u

            row_sums, u = _fold(step, jnp.zeros(rows.shape), self, shifts)
            next_v = jnp.where(rows, 1.0 / (count * jnp.maximum(row_sums, tiny)), 0.0)
            return next_v, _join_blocks(u)

        v, u = jnp.where(rows, jnp.exp(row_shift), 0.0), jnp.ones((prototypes,))
        for _ in range(SINKHORN_ITERATIONS):
            v, u = scale(v)
        return _one_target(self, jnp.log(u) - shifts, jnp.log(v * count) - row_shift, temp)

    def cross_entropy(self, targets: Any, temp: float = STUDENT_TEMP) -> Array:
        return _cross_entropy(self, targets, temp)


@struct.dataclass
class FactoredTargets:
    """Targets sum_T exp(<features, prototypes> / temp + column + row), [..., K] if written out.

    Attributes:
      scores: the teacher's, features [..., T, d]: T targets are summed.
      column: [K].
      row: [..., T]; -inf for padding, whose targets are 0.
      temp: teacher temperature.
    """

    scores: FactoredScores
    column: Array
    row: Array
    temp: Array

    def map_rows(self, change: Callable[[Array], Array]) -> "FactoredTargets":
        return self.replace(scores=self.scores.map_rows(change), row=change(self.row))

    def swap_crops(self) -> "FactoredTargets":
        """[..., 2, 1] targets of crops 1 and 2 -> those of crops 2 and 1."""
        return self.map_rows(lambda x: jnp.flip(x, self.row.ndim - 2))

    def sum_crops(self) -> "FactoredTargets":
        """[..., 2, 1] targets of two crops -> their sum [..., 1, 2]."""
        return self.map_rows(lambda x: jnp.swapaxes(x, self.row.ndim - 2, self.row.ndim - 1))

    def entropy_and_choice(self) -> tuple[Array, Array]:
        def step(carry: Any, blocks: Any) -> Any:
            block, column, number = blocks
            entropy, best, choice = carry
            exponent = inner_products(self.scores.features[..., 0, :], block) / self.temp
            exponent += column + self.row
            target = jnp.exp(exponent)
            entropy -= jnp.sum(jnp.where(target > 0, target * exponent, 0.0), axis=-1)
            top = exponent.max(-1)
            choice = jnp.where(top > best, number[jnp.argmax(exponent, axis=-1)], choice)
            return (entropy, jnp.maximum(best, top), choice), None

        rows = self.row.shape[:-1]
        start = jnp.zeros(rows), jnp.full(rows, -jnp.inf), jnp.zeros(rows, jnp.int32)
        numbers = jnp.arange(self.column.shape[0], dtype=jnp.int32)
        (entropy, _, choice), _ = _fold(step, start, self.scores, self.column, numbers)
        return entropy, choice


def _blocks(x: Array, block: int) -> Array:
    """[K, ...] -> [K / block, block, ...]; the new leading axis is scanned.

    Prototypes may be split over devices. Each block takes an equal share from every device, so that
    all devices work on every block and no prototypes are sent.
    """
    shards = _shards(block)
    apart = x.reshape(shards, -1, block // shards, *x.shape[1:])
    return jnp.swapaxes(apart, 0, 1).reshape(-1, block, *x.shape[1:])


def _join_blocks(x: Array) -> Array:
    """The inverse of `_blocks`: [K / block, block, ...] -> [K, ...]."""
    number, block = x.shape[:2]
    shards = _shards(block)
    apart = x.reshape(number, shards, block // shards, *x.shape[2:])
    return jnp.swapaxes(apart, 0, 1).reshape(number * block, *x.shape[2:])


def _shards(block: int) -> int:
    shards = tensor_shards()
    return 1 if block % shards else shards


def group_mean_score(features: Array, prototypes: Array, valid: Array | None = None) -> Array:
    """Mean over each group's valid rows, then over groups: features [G, M, d] -> [K], fp32.

    The mean score is the score of the mean feature, so no scores are read.
    """
    mean = masked_group_mean(features, valid)
    return jnp.einsum("d,kd->k", mean, prototypes, precision="highest")


def inner_products(features: Array, prototypes: Array) -> Array:
    """[..., d] and [K, d] -> scores [..., K]."""
    # Scores stay in fp32: rounded to bf16 and divided by 0.04 they would be off by 0.05.
    return constrain_columns(weight_product(features, prototypes, 1))


def _fold(step: Callable[..., Any], start: Any, scores: FactoredScores, *columns: Array) -> Any:
    """Scans step(carry, (block of prototypes, column blocks...)) over the prototypes."""
    blocks = tuple(_blocks(x, scores.block) for x in (scores.prototypes, *columns))
    return jax.lax.scan(step, start, tuple(constrain_prototypes(x, 1) for x in blocks))


def _logsumexp_step(peak: Array, total: Array, scores: Array) -> tuple[Array, Array]:
    """Adds a block to a running log-sum-exp, kept as (maximum, sum relative to it)."""
    higher = jnp.maximum(peak, scores.max(-1))
    total = total * jnp.exp(peak - higher) + jnp.exp(scores - higher[..., None]).sum(-1)
    return higher, total


def _one_target(
    scores: FactoredScores, column: Array, row: Array, temp: Array | float
) -> FactoredTargets:
    """Targets with T = 1."""
    scores = scores.map_rows(lambda x: x[..., None, :])
    return FactoredTargets(scores, column, row[..., None], jnp.asarray(temp, jnp.float32))


def _target_block(targets: FactoredTargets, block: Array, column: Array) -> Array:
    """The targets of one block of prototypes, summed over T: [..., block]."""
    logits = inner_products(targets.scores.features, block) / targets.temp
    return jnp.exp(logits + column + targets.row[..., None]).sum(-2)


@jax.custom_vjp
def _cross_entropy(student: FactoredScores, targets: FactoredTargets, temp: float) -> Array:
    """-sum_k t_k log softmax(scores / temp)_k, [..., S] fp32; the backward pass scans again.

    Args:
      student: scores [..., S, d].
      targets: rows [..., S, T], or [..., 1, T] if all S share them; without gradient.
    """
    return _cross_entropy_forward(student, targets, temp)[0]


def _cross_entropy_forward(student: FactoredScores, targets: FactoredTargets, temp: float) -> Any:
    def step(carry: Any, blocks: Any) -> Any:
        block, teacher_block, column = blocks
        peak, exponentials, total, inner = carry
        scaled = inner_products(student.features, block) / temp
        target = _target_block(targets, teacher_block, column)
        peak, exponentials = _logsumexp_step(peak, exponentials, scaled)
        inner = inner + jnp.sum(target * scaled, axis=-1)
        return (peak, exponentials, total + target.sum(-1), inner), None

    rows = student.features.shape[:-1]
    zeros, target_rows = jnp.zeros(rows), targets.row.shape[:-1]
    start = jnp.full(rows, -jnp.inf), zeros, jnp.zeros(target_rows), zeros
    (peak, exponentials, total, inner), _ = _fold(
        step, start, student, targets.scores.prototypes, targets.column
    )
    lse = peak + jnp.log(exponentials)
    return total * lse - inner, (student, targets, temp, total, lse)


def _cross_entropy_backward(residuals: Any, cotangent: Array) -> tuple[FactoredScores, None, None]:
    student, targets, temp, total, lse = residuals
    features = student.features

    def step(into_features: Array, blocks: Any) -> tuple[Array, Array]:
        block, teacher_block, column = blocks
        softmax = jnp.exp(inner_products(features, block) / temp - lse[..., None])
        target = _target_block(targets, teacher_block, column)
        error = (cotangent / temp)[..., None] * (total[..., None] * softmax - target)
        error = error.astype(features.dtype)
        into_block = _einsum_f32("...d,...k->kd", features, error)
        return into_features + _einsum_f32("...k,kd->...d", error, block), into_block

    into_features, into_prototypes = _fold(
        step, jnp.zeros(features.shape), student, targets.scores.prototypes, targets.column
    )
    gradient = student.replace(
        features=into_features.astype(features.dtype),
        prototypes=_join_blocks(into_prototypes).astype(student.prototypes.dtype),
    )
    return gradient, None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
