"""The patch-level loss: masked patches of the student against the teacher's unmasked ones."""

import jax.numpy as jnp
from jax import Array

from dinov2_jax.ssl.scores import Scores, Targets


def ibot_loss(student: Scores, targets: Targets, weights: Array, global_crops: int) -> Array:
    """Every masked crop weighs 1, and the sum is divided by ALL global crops.

    About half of the global crops carry no mask, so this is about half of a mean over masked crops
    (FB dinov2/loss/ibot_patch_loss.py).

    Args:
      student, targets: [..., M, K] at masked positions; padding has weight 0.
      weights: [..., M], 1 / (masked patches of the crop that the slot belongs to).
      global_crops: number of global crops in the batch, 2B.
    """
    return jnp.sum(weights * student.cross_entropy(targets)) / global_crops
