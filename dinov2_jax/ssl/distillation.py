"""What distillation changes in the objective (paper section 5, "Knowledge distillation").

A frozen, larger teacher gives the targets. The student sees whole crops, without masks, and learns
the teacher's patch tokens of both global crops. The losses are those of pretraining, or those of
ssl/feature_matching.py.
"""

import jax.numpy as jnp

from dinov2_jax.ssl.forward import Batch


def with_all_patches(batch: Batch, patch_size: int) -> Batch:
    """The batch with every patch of the global crops as an iBOT slot.

    The loss is then the plain mean over tokens: each of the P patches of a crop weighs 1 / P, and
    the sum is divided by the number of crops. Sinkhorn balances the prototypes over all tokens.

    Args:
      batch: "global_crops" [B, 2, S, S, C], "mask_indices" [G, M].
      patch_size: px.

    Returns:
      The same with "mask_indices" int32 and "mask_weights" fp32 [G, (B / G) 2 P].
    """
    groups = batch["mask_indices"].shape[0]
    images, views, side = batch["global_crops"].shape[:3]
    patches = (side // patch_size) ** 2
    slots = images // groups * views * patches
    return {
        **batch,
        "mask_indices": jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (groups, slots)),
        "mask_weights": jnp.full((groups, slots), 1 / patches, jnp.float32),
    }
