"""Scores of tokens against prototypes, and the teacher's targets: one interface, two ways to store.

Dense: the matrix [..., K] is written out, which is faster. Factored (ssl/factored.py): features and
prototypes stay apart, and the memory does not depend on K. `make_scores` chooses; whoever uses
scores and targets cannot tell the difference.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dinov2_jax.ops.log_sum_exp import log_sum_exp
from dinov2_jax.parallel.constraints import constrain_batch
from dinov2_jax.ssl import centering
from dinov2_jax.ssl.factored import (
    STUDENT_TEMP,
    FactoredScores,
    FactoredTargets,
    group_mean_score,
    inner_products,
)


@struct.dataclass
class DenseTargets:
    """The teacher's targets [..., K]. The rows of one crop sum to 1, those of padding to 0."""

    probabilities: Array

    def map_rows(self, change: Callable[[Array], Array]) -> "DenseTargets":
        """Applies `change`, which moves or selects along leading axes, to every stored array."""
        return DenseTargets(change(self.probabilities))

    def swap_crops(self) -> "DenseTargets":
        """[..., 2, K] targets of crops 1 and 2 -> those of crops 2 and 1."""
        return DenseTargets(jnp.flip(self.probabilities, axis=-2))

    def sum_crops(self) -> "DenseTargets":
        """[..., 2, K] targets of two crops -> their sum [..., 1, K]."""
        return DenseTargets(self.probabilities.sum(axis=-2, keepdims=True))

    def entropy_and_choice(self) -> tuple[Array, Array]:
        """Entropy (nats) and most probable prototype of each target, both [...]."""
        p = self.probabilities
        return -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1), jnp.argmax(p, axis=-1)


@struct.dataclass
class DenseScores:
    """Scores [..., K], fp32: the inner products of tokens and prototypes.

    Attributes:
      features, prototypes: what they are products of, as in `FactoredScores`; with None, means are
        taken over the scores.
    """

    logits: Array
    features: Array | None = None
    prototypes: Array | None = None

    def map_rows(self, change: Callable[[Array], Array]) -> "DenseScores":
        """Applies `change`, which moves or selects along leading axes, to every stored array."""
        return DenseScores(*jax.tree.map(change, (self.logits, self.features)), self.prototypes)

    def group_mean(self, valid: Array | None = None) -> Array:
        """Mean over each group's valid rows, then over groups: [G, M, K] -> [K]."""
        if self.features is None or self.prototypes is None:
            return centering.masked_group_mean(self.logits, valid)
        return group_mean_score(self.features, self.prototypes, valid)

    def softmax_center(self, center: Array, temp: Array | float) -> DenseTargets:
        """Targets softmax((scores - center) / temp); center [K]."""
        return DenseTargets(centering.softmax_center(self.logits, center, temp))

    def sinkhorn_knopp(self, temp: Array | float, valid: Array | None = None) -> DenseTargets:
        """Targets that use all prototypes almost evenly; `valid` [...] is False for padding."""
        return DenseTargets(centering.sinkhorn_knopp(self.logits, temp, valid))

    def cross_entropy(self, targets: Any, temp: float = STUDENT_TEMP) -> Array:
        """-sum_k t_k log softmax(scores / temp)_k, [...]; `targets` stored like these scores.

        No gradient flows into the targets.
        """
        return _cross_entropy(self.logits, targets.probabilities, temp)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cross_entropy(logits: Array, t: Array, temp: float) -> Array:
    return _cross_entropy_forward(logits, t, temp)[0]


def _cross_entropy_forward(logits: Array, t: Array, temp: float) -> tuple[Array, Any]:
    # total(t) * lse - <t, logits> / temp, without the array logits / temp in memory. Targets need
    # not sum to 1: those of two crops are summed, those of padding are 0.
    lse = log_sum_exp(logits / temp)
    inner = jnp.einsum("...k,...k->...", t, logits, precision="highest") / temp
    total = t.sum(axis=-1)
    return total * lse - inner, (logits, t, lse, total)


def _cross_entropy_backward(temp: float, residuals: Any, slope: Array) -> tuple[Array, None]:
    logits, t, lse, total = residuals
    softmax = jnp.exp(logits / temp - lse[..., None])
    return (slope / temp)[..., None] * (total[..., None] * softmax - t), None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


Scores = DenseScores | FactoredScores
Targets = DenseTargets | FactoredTargets


def make_scores(features: Array, prototypes: Array, block: int = 0) -> Scores:
    """Scores from the two outputs of a head.

    Args:
      features: [..., d], unit vectors.
      prototypes: [K, d].
      block: 0 writes the scores out; otherwise they stay factored, and this many prototypes are
        computed at a time (a divisor of K).
    """
    features = constrain_batch(features)
    if block:
        return FactoredScores(features, prototypes, block)
    return DenseScores(inner_products(features, prototypes), features, prototypes)
