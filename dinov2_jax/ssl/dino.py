"""The image-level loss: cls tokens of the student against the teacher's (paper section 4)."""

import jax.numpy as jnp
from jax import Array

from dinov2_jax.ssl.scores import Scores, Targets


def dino_global_loss(student: Scores, targets: Targets) -> Array:
    """Sum over the two pairings of different global crops, each averaged over the batch.

    Args:
      student: scores [..., 2, K] of global crops 1 and 2.
      targets: of the same crops, same shape.
    """
    return 2 * jnp.mean(student.cross_entropy(targets.swap_crops()))


def dino_local_loss(student: Scores, targets: Targets) -> Array:
    """Sum over all pairs (local crop, global crop), each averaged over the batch.

    Args:
      student: scores [..., V, K] of the local crops.
      targets: [..., 2, K] of the global crops.
    """
    # Cross-entropy is linear in the targets, so one per local crop is enough.
    each = student.cross_entropy(targets.sum_crops())
    return each.shape[-1] * jnp.mean(each)


def dino_terms(local_crops: int) -> int:
    """The divisor of both DINO parts: 2 global pairs + 2 pairs a local crop (3 without locals).

    The reference counts one local term even when there are none (FB train/ssl_meta_arch.py).
    """
    return 2 + max(2 * local_crops, 1)
