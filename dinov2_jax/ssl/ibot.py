"""The patch-level loss: masked patches of the student against the teacher's unmasked ones."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from dinov2_jax.ssl.scores import Scores, Targets


def masked_patches(patches: Array, indices: Array) -> Array:
    """Patch tokens [G, b, P, D] of the global crops at the masked slots: [G, M, D].

    Args:
      indices: [G, M], into the b * P patches of a group.
    """
    flat = rearrange(patches, "g b p d -> g (b p) d")
    return jax.vmap(lambda rows, i: rows[i])(flat, indices)


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
