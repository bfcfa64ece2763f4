"""The three losses of DINOv2 (paper section 4; FB dinov2/loss).

All in fp32, which a GPU or TPU multiplies as such only where precision="highest" is asked for.
"""

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.models.head import Scores
from dinov2_jax.ssl import blocked
from dinov2_jax.ssl.blocked import FactoredTargets

Logits = Array | Scores
Targets = Array | FactoredTargets

STUDENT_TEMP = 0.1


def cross_entropy(logits: Logits, targets: Targets, temp: float = STUDENT_TEMP) -> Array:
    """-sum_k t_k log softmax(logits / temp)_k as total(t) * lse - <t, logits> / temp.

    Args:
      logits, targets: [..., K]; targets need not sum to 1 (summed targets, zero padding). Or both
        factored, see ssl/blocked.py.

    Returns:
      [...].
    """
    if isinstance(logits, Scores):
        return blocked.cross_entropy(logits, targets, temp)
    # Of the logits as they are, not of logits / temp: an array of [..., K] less in memory.
    logits = logits.astype(jnp.float32)
    inner = jnp.einsum("...k,...k->...", targets, logits, precision="highest") / temp
    peak = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    total = jnp.exp((logits - peak) / temp).sum(axis=-1)
    return targets.sum(axis=-1) * (jnp.log(total) + peak[..., 0] / temp) - inner


def _swap_crops(targets: Targets) -> Targets:
    if isinstance(targets, FactoredTargets):
        return targets.swap_crops()
    return jnp.flip(targets, axis=-2)


def _add_crops(targets: Targets) -> Targets:
    if isinstance(targets, FactoredTargets):
        return targets.add_crops()
    return targets.sum(axis=-2, keepdims=True)


def dino_global_loss(student: Logits, targets: Targets) -> Array:
    """Sum over the two pairings of different global crops, each averaged over the batch.

    Args:
      student: logits [..., 2, K] of global crops 1 and 2; targets: of the same crops, same shape.
    """
    return 2 * jnp.mean(cross_entropy(student, _swap_crops(targets)))


def dino_local_loss(student: Logits, targets: Targets) -> Array:
    """Sum over all pairs (local crop, global crop), each averaged over the batch.

    Args:
      student: logits [..., V, K] of the local crops; targets: [..., 2, K] of the global ones.
    """
    # One cross-entropy a local crop instead of two.
    each = cross_entropy(student, _add_crops(targets))
    return each.shape[-1] * jnp.mean(each)


def dino_terms(local_crops: int) -> int:
    """The divisor of both DINO parts: 2 global pairs + 2 pairs a local crop (3 without locals).

    The reference counts one local term even when there are none (FB train/ssl_meta_arch.py).
    """
    return 2 + max(2 * local_crops, 1)


def ibot_loss(student: Logits, targets: Targets, weights: Array, global_crops: int) -> Array:
    """Masked-patch loss: every masked crop weighs 1, the sum is divided by ALL global crops.

    About half of the global crops carry no mask, so this is about half of a mean over masked crops.

    Args:
      student, targets: [..., M, K] at masked positions; padding has weight 0.
      weights: [..., M], 1 / (masked patches of the crop the slot belongs to).
      global_crops: number of global crops in the batch, 2B.
    """
    return jnp.sum(weights * cross_entropy(student, targets)) / global_crops


def koleo_loss(features: Array) -> Array:
    """Kozachenko-Leonenko regulariser: -mean log distance to the nearest neighbour in the group.

    Args:
      features: [..., n, D], n >= 2; every leading index is a group of its own.

    Returns:
      Mean over groups.
    """
    x = features.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16))
    x = x / norm
    dots = jnp.einsum("...id,...jd->...ij", x, x, precision="highest")
    own = jnp.eye(x.shape[-2], dtype=bool)
    # DINOv2: the reference marks the diagonal by -1, so vectors all opposite could pick themselves.
    nearest = jnp.argmax(jnp.where(own, -jnp.inf, dots), axis=-1)
    neighbour = jnp.take_along_axis(x, nearest[..., None], axis=-2)
    # torch's pairwise distance adds its eps to every component of the difference.
    distance = jnp.linalg.norm(x - neighbour + 1e-8, axis=-1)
    return -jnp.mean(jnp.log(distance + 1e-8))
