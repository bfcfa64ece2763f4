"""Distillation by features: a student learns the tokens of a frozen teacher, not its prototypes.

Each kind of token passes a linear projection from the student's width to the teacher's, and the
loss is 1 - cos to the teacher's token, from 0 to 2. The projections belong to the training; only
the backbone is kept for use. The cosine is the loss of the summary tokens in AM-RADIO (arXiv
2312.06709); it needs no scale, so that it treats any teacher alike, and k-NN, retrieval and the
teacher's own heads compare directions of features.

A global crop learns the cls and patch tokens that the teacher gives to the same crop. A local crop,
which the teacher does not see, learns the teacher's cls tokens of both global crops, as in DINO.
"""

# DINOv2: the reference distils prototypes only (paper section 5), which needs the teacher's heads.

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct
from jax import Array

from dinov2_jax.models.head import l2_normalize
from dinov2_jax.models.layers import Linear
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ssl.diagnostics import effective_rank
from dinov2_jax.ssl.distillation import with_all_patches
from dinov2_jax.ssl.forward import Batch, Params, student_features, teacher_features
from dinov2_jax.ssl.koleo import koleo_loss
from dinov2_jax.ssl.microbatches import take_part

# Fewer features have a low rank by their number alone.
_LEAST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class FeatureNetworks:
    """The modules of the student or the teacher.

    Attributes:
      width: of the teacher's tokens; 0 for the teacher itself, which has no projections.
    """

    backbone: VisionTransformer
    width: int = 0
    in_channels: int = 3

    def init(self, key: Array, image_size: int) -> dict[str, Params]:
        """Fresh parameters {"backbone"[, "cls_projection", "patch_projection"]}."""
        backbone_key, *keys = jax.random.split(key, 3)
        images = jnp.zeros((1, image_size, image_size, self.in_channels))
        params = {"backbone": self.backbone.init(backbone_key, images)["params"]}
        if not self.width:
            return params
        token = jnp.zeros((1, self.backbone.dim))
        names = ("cls_projection", "patch_projection")
        return params | {
            name: self._projection().init(own, token)["params"]
            for name, own in zip(names, keys, strict=True)
        }

    def _projection(self) -> Linear:
        return Linear(self.width, True, self.backbone.dtype, fp32_gradients=True)

    def project(self, params: Params, name: str, tokens: Array) -> Array:
        """Tokens [..., D] as unit vectors in the teacher's space [..., width], fp32."""
        projected: Any = self._projection().apply({"params": params[name]}, tokens)
        return l2_normalize(projected)


@struct.dataclass
class FeatureTargets:
    """Unit vectors of the teacher's tokens of the global crops; no gradient flows through them.

    Attributes:
      cls: [G, 2n, D], image before view.
      patches: [G, 2nP, D].
    """

    cls: Array
    patches: Array


def cosine_loss(student: Array, teacher: Array) -> Array:
    """Mean of 1 - cos over all rows of unit vectors [..., D]; 0 for equal directions, at most 2."""
    return 1 - jnp.mean(jnp.sum(student * teacher, axis=-1))


@dataclasses.dataclass(frozen=True)
class FeatureObjective:
    """The networks of both sides and the weights of the losses; see `Objective` for the others.

    Attributes:
      cls_weight: of the cls tokens of global and of local crops.
      patch_weight: of the patch tokens; 0 leaves out all that they need.
    """

    student: FeatureNetworks
    teacher: FeatureNetworks
    micro_batches: int = 1
    train_backbone: bool = True
    cls_weight: float = 1.0
    koleo_weight: float = 0.1
    patch_weight: float = 1.0

    def init_centers(self) -> dict[str, Array]:
        """No loss centres."""
        return {}

    def serving(self, others: Sequence["FeatureObjective"]) -> "FeatureObjective":
        """This objective: its targets serve all students of a teacher."""
        return self

    def prepared(self, batch: Batch) -> Batch:
        """The batch with all patches of the global crops."""
        return with_all_patches(batch, self.student.backbone.patch_size)

    def targets(
        self, params: Params, centers: Mapping[str, Array], batch: Batch, temp: Array
    ) -> tuple[FeatureTargets, dict[str, Array]]:
        """The teacher's tokens of the global crops, and no centres; `temp` has no meaning here.

        Args:
          params: the teacher's.
          batch: "global_crops" [B, 2, S, S, C] normalised, and `prepared`.
        """
        tokens = teacher_features(self.teacher.backbone, params, batch, self.micro_batches)
        return jax.lax.stop_gradient(FeatureTargets(*map(l2_normalize, tokens))), {}

    def part(
        self, targets: FeatureTargets, batch: Batch, keys: Array, index: Array
    ) -> tuple[FeatureTargets, dict[str, Array], Array]:
        """Targets, batch and keys of one micro-batch, for `loss`."""
        groups = batch["mask_indices"].shape[0]

        def take(x: Array) -> Array:
            return take_part(x, groups, self.micro_batches, index)

        return jax.tree.map(take, targets), {name: take(x) for name, x in batch.items()}, take(keys)

    def loss(
        self, params: Params, targets: FeatureTargets, batch: Batch, keys: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """The optimised total and its parts, each a mean over groups.

        Args:
          params: the student's.
          targets: from `targets`.
          batch: also "local_crops" [B, V, s, s, C].
          keys: [G], stochastic depth; None turns it off.

        Returns:
          loss, and {"loss/cls_features", "loss/local_features", "loss/patch_features",
          "loss/koleo"}, each as it enters the total before its weight, and
          "health/effective_rank" of the student's cls tokens within a group, if it is large enough.
        """
        out = student_features(
            self.student.backbone, params, batch, keys, masked=False, trained=self.train_backbone
        )
        cls = self.student.project(params, "cls_projection", out.all_cls())
        global_cls, local_cls = jnp.split(cls, [out.global_cls.shape[1]], axis=1)
        parts = {
            "loss/cls_features": cosine_loss(global_cls, targets.cls),
            "loss/local_features": _local_loss(local_cls, targets.cls),
            "loss/patch_features": jnp.zeros(()),
            "loss/koleo": 2 * koleo_loss(rearrange(out.global_cls, "g (n v) d -> v g n d", v=2)),
        }
        if self.patch_weight:
            patches = self.student.project(params, "patch_projection", out.patches)
            parts["loss/patch_features"] = cosine_loss(patches, targets.patches)
        loss = (
            self.cls_weight * (parts["loss/cls_features"] + parts["loss/local_features"])
            + self.koleo_weight * parts["loss/koleo"]
            + self.patch_weight * parts["loss/patch_features"]
        )
        return loss, parts | _rank(jax.lax.stop_gradient(out.global_cls))

    def health(
        self, targets: FeatureTargets, parts: Mapping[str, Array], batch: Batch
    ) -> dict[str, Array]:
        """The cls loss of a student that answers every crop with the best fixed vector.

        A student that has learned something of the pictures has a lower "loss/cls_features".
        """
        mean = jnp.mean(targets.cls, axis=(0, 1))
        return {"health/constant_cls": 1 - jnp.linalg.norm(mean)}


def _local_loss(local: Array, teacher: Array) -> Array:
    """Mean of 1 - cos over all pairs of a local crop [G, nV, D] and a global one [G, 2n, D]."""
    if not local.shape[1]:
        return jnp.zeros(())
    # The cosine is linear in the target, so the mean of both targets gives the mean of both losses.
    both = rearrange(teacher, "g (n c) d -> g n c d", c=2).mean(axis=2, keepdims=True)
    return cosine_loss(rearrange(local, "g (n v) d -> g n v d", n=both.shape[1]), both)


def _rank(cls: Array) -> dict[str, Array]:
    """The mean over groups is the same in micro-batches and on any number of devices."""
    if cls.shape[1] < _LEAST_ROWS:
        return {}
    return {"health/effective_rank": jnp.mean(jax.vmap(effective_rank)(cls))}
