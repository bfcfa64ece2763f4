"""What the networks of both sides see of a batch; every objective begins with it.

A batch consists of G statistical groups of n images (design 3.3).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ssl.microbatches import join_parts, take_part

Params = Mapping[str, Any]
Batch = Mapping[str, Array]


class StudentFeatures(NamedTuple):
    """Features of a student.

    Attributes:
      global_cls: [G, 2n, D], image before view.
      local_cls: [G, nV, D], or None without local crops.
      patches: of the global crops at `mask_indices`, [G, M, D].
    """

    global_cls: Array
    local_cls: Array | None
    patches: Array

    def all_cls(self) -> Array:
        """The cls tokens of all crops, global ones first, [G, 2n + nV, D]."""
        if self.local_cls is None:
            return self.global_cls
        return jnp.concatenate([self.global_cls, self.local_cls], axis=1)


def group_crops(x: Array, groups: int) -> Array:
    """[B, V, ...] -> [G, (B/G) V, ...], image before view."""
    return rearrange(x, "(g n) v ... -> g (n v) ...", g=groups)


def teacher_features(
    backbone: VisionTransformer, params: Params, batch: Batch, micro_batches: int
) -> tuple[Array, Array]:
    """The teacher's cls tokens [G, 2n, D] and patches at `mask_indices` [G, M, D].

    The network sees one micro-batch after the other; targets may need features of the whole batch.
    """
    groups, parts = batch["mask_indices"].shape[0], micro_batches
    variables = {"params": params["backbone"]}

    def one(crops: Array, indices: Array) -> tuple[Array, Array]:
        grouped = group_crops(crops, indices.shape[0])
        out: Any = backbone.apply(variables, [grouped], patches_at=indices)[0]
        return out["cls"], out["patches"]

    inputs = batch["global_crops"], batch["mask_indices"]
    if parts == 1:
        return one(*inputs)
    outs = jax.lax.map(
        lambda index: one(*(take_part(x, groups, parts, index) for x in inputs)), jnp.arange(parts)
    )
    return jax.tree.map(join_parts, outs)


def student_features(
    backbone: VisionTransformer,
    params: Params,
    batch: Batch,
    keys: Array | None,
    *,
    masked: bool,
    trained: bool,
) -> StudentFeatures:
    """The student's features of all crops, in one packed pass.

    Args:
      keys: [G], stochastic depth; None turns it off.
      masked: whether "masks" hide patches of the global crops.
      trained: False spares the gradient of the backbone.
    """
    groups = batch["mask_indices"].shape[0]
    crops = [group_crops(batch["global_crops"], groups)]
    masks: list[Array | None] = [group_crops(batch["masks"], groups) if masked else None]
    if batch["local_crops"].shape[1]:
        crops.append(group_crops(batch["local_crops"], groups))
        masks.append(None)
    weights = params["backbone"] if trained else jax.lax.stop_gradient(params["backbone"])
    out: Any = backbone.apply(
        {"params": weights},
        crops,
        masks=masks,
        drop_path_keys=keys,
        patches_at=batch["mask_indices"],
    )
    local_cls = out[1]["cls"] if len(out) > 1 else None
    return StudentFeatures(out[0]["cls"], local_cls, out[0]["patches"])
