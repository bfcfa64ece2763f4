"""The training objective: teacher targets, student forward, the weighted sum of losses.

A batch consists of G statistical groups of n images (design 3.3). Everything that the reference
computes per GPU (KoLeo neighbours, the stochastic-depth subset, iBOT centres) is per group here.
"""

# DINOv2: groups of `group_size` images instead of GPUs, so that results do not depend on devices.

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct
from jax import Array

from dinov2_jax.models.head import DINOHead
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ssl.centering import update_center
from dinov2_jax.ssl.diagnostics import representation_health
from dinov2_jax.ssl.dino import dino_global_loss, dino_local_loss, dino_terms
from dinov2_jax.ssl.distillation import with_all_patches
from dinov2_jax.ssl.forward import Batch, Params, student_features, teacher_features
from dinov2_jax.ssl.ibot import ibot_loss
from dinov2_jax.ssl.koleo import koleo_loss
from dinov2_jax.ssl.microbatches import take_part
from dinov2_jax.ssl.scores import Scores, Targets, make_scores

PATCHES = ("all", "masked")


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules of the student or the teacher.

    Attributes:
      ibot_head: None sends patches through the DINO head.
      prototype_block: 0, or the number of prototypes to compute at a time (see ssl/scores.py).
    """

    backbone: VisionTransformer
    dino_head: DINOHead
    ibot_head: DINOHead | None = None
    in_channels: int = 3
    prototype_block: int = 0

    def init(self, key: Array, image_size: int) -> dict[str, Any]:
        """Fresh parameters {"backbone", "dino_head"[, "ibot_head"]}."""
        backbone_key, dino_key, ibot_key = jax.random.split(key, 3)
        images = jnp.zeros((1, image_size, image_size, self.in_channels))
        features = jnp.zeros((1, self.backbone.dim))
        params = {
            "backbone": self.backbone.init(backbone_key, images)["params"],
            "dino_head": self.dino_head.init(dino_key, features)["params"],
        }
        if self.ibot_head is not None:
            params["ibot_head"] = self.ibot_head.init(ibot_key, features)["params"]
        return params

    def scores(
        self, params: Params, cls: Array, patches: Array | None
    ) -> tuple[Scores, Scores | None]:
        """DINO scores of cls tokens, iBOT scores of patches; [G, rows, D] -> [G, rows, K]."""
        dino_params, block = {"params": params["dino_head"]}, self.prototype_block
        if patches is None:
            return make_scores(*self.dino_head.apply(dino_params, cls), block), None
        if self.ibot_head is not None:
            dino = self.dino_head.apply(dino_params, cls)
            ibot = self.ibot_head.apply({"params": params["ibot_head"]}, patches)
            return make_scores(*dino, block), make_scores(*ibot, block)
        # A shared head runs once on all rows, and its prototypes are normalised once.
        together = jnp.concatenate([cls, patches], axis=1)
        features, prototypes = self.dino_head.apply(dino_params, together)
        parts = jnp.split(features, [cls.shape[1]], axis=1)
        return make_scores(parts[0], prototypes, block), make_scores(parts[1], prototypes, block)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The networks of both sides, the centering, and the weights of the losses.

    Attributes:
      ibot_weight: 0 leaves out all that iBOT alone needs.
      micro_batches: number of parts in which the networks see a batch; divides its groups.
      masked_student: False shows the student whole crops, as in distillation.
      patches: which patches of the global crops iBOT learns, one of PATCHES.
      train_backbone: False trains the heads alone, without the cost of the backbone's gradient.
    """

    student: Networks
    teacher: Networks
    micro_batches: int = 1
    masked_student: bool = True
    patches: str = "masked"
    train_backbone: bool = True
    centering: str = "centering"
    dino_weight: float = 1.0
    koleo_weight: float = 0.1
    ibot_weight: float = 1.0

    def init_centers(self) -> dict[str, Array]:
        """Loss centres, zero; used by softmax centering only."""
        dino = self.student.dino_head
        ibot = self.student.ibot_head or dino
        return {"dino": jnp.zeros(dino.prototypes), "ibot": jnp.zeros(ibot.prototypes)}

    def serving(self, others: Sequence["Objective"]) -> "Objective":
        """This objective with the targets that others need, too: patches if one learns them."""
        return dataclasses.replace(self, ibot_weight=max(x.ibot_weight for x in others))

    def prepared(self, batch: Batch) -> Batch:
        """The batch with the patches that iBOT learns."""
        if self.patches == "all":
            return with_all_patches(batch, self.student.backbone.patch_size)
        return batch

    def targets(
        self, params: Params, centers: Mapping[str, Array], batch: Batch, temp: Array
    ) -> tuple["TeacherOutput", dict[str, Array]]:
        """See `teacher_targets`."""
        return teacher_targets(self, params, centers, batch, temp)

    def part(
        self, targets: "TeacherOutput", batch: Batch, keys: Array, index: Array
    ) -> tuple["TeacherOutput", dict[str, Array], Array]:
        """See `part_of_batch`."""
        return part_of_batch(self, targets, batch, keys, index)

    def loss(
        self, params: Params, targets: "TeacherOutput", batch: Batch, keys: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """See `student_loss`."""
        return student_loss(params, self, targets, batch, keys)

    def health(
        self, targets: "TeacherOutput", parts: Mapping[str, Array], batch: Batch
    ) -> dict[str, Array]:
        """See `representation_health`; parts: of the loss."""
        crossed = parts["loss/dino_global"] * dino_terms(batch["local_crops"].shape[1]) / 2
        prototypes = self.student.dino_head.prototypes
        return representation_health(targets.dino, targets.cls, crossed, prototypes)


@struct.dataclass
class TeacherOutput:
    """What the student has to predict; no gradient flows through it.

    Attributes:
      dino: targets of the global crops' cls tokens, [G, n, 2, K].
      ibot: targets of the masked patches, [G, M, K]; None without iBOT.
      cls: features of the global crops' cls tokens, [G, 2n, D], for diagnostics.
    """

    dino: Targets
    ibot: Targets | None
    cls: Array


def _center(
    objective: Objective, scores: Scores, center: Array, temp: Array, valid: Array | None = None
) -> tuple[Targets, Array]:
    """Targets [G, rows, K] of one head, and its next centre; valid [G, rows] or None."""
    if objective.centering == "sinkhorn_knopp":
        return scores.sinkhorn_knopp(temp, valid), center
    return scores.softmax_center(center, temp), update_center(center, scores.group_mean(valid))


def teacher_targets(
    objective: Objective, params: Params, centers: Mapping[str, Array], batch: Batch, temp: Array
) -> tuple[TeacherOutput, dict[str, Array]]:
    """Targets from the teacher's unmasked view of the global crops, and the next centres.

    Args:
      params: the teacher's.
      batch: "global_crops" [B, 2, S, S, C] normalised, "mask_indices", "mask_weights" [G, M].
      temp: teacher temperature.
    """
    cls, patches = teacher_features(
        objective.teacher.backbone, params, batch, objective.micro_batches
    )
    wanted = patches if objective.ibot_weight else None
    cls_scores, patch_scores = objective.teacher.scores(params, cls, wanted)
    dino, dino_center = _center(objective, cls_scores, centers["dino"], temp)
    ibot, ibot_center = None, centers["ibot"]
    if patch_scores is not None:
        valid = batch["mask_weights"] > 0
        ibot, ibot_center = _center(objective, patch_scores, ibot_center, temp, valid)
    by_view = dino.map_rows(lambda x: rearrange(x, "g (n v) ... -> g n v ...", v=2))
    out = TeacherOutput(by_view, ibot, cls)
    return jax.lax.stop_gradient((out, {"dino": dino_center, "ibot": ibot_center}))


def part_of_batch(
    objective: Objective, targets: TeacherOutput, batch: Batch, keys: Array, index: Array
) -> tuple[TeacherOutput, dict[str, Array], Array]:
    """Targets, batch and keys of one micro-batch, for `student_loss`."""
    groups = batch["mask_indices"].shape[0]

    def take(x: Array) -> Array:
        return take_part(x, groups, objective.micro_batches, index)

    dino = targets.dino.map_rows(take)
    ibot = None if targets.ibot is None else targets.ibot.map_rows(take)
    part = TeacherOutput(dino, ibot, take(targets.cls))
    return part, {name: take(x) for name, x in batch.items()}, take(keys)


def student_loss(
    params: Params, objective: Objective, targets: TeacherOutput, batch: Batch, keys: Array | None
) -> tuple[Array, dict[str, Array]]:
    """The optimised total and its parts (FB train/ssl_meta_arch.py).

    Every term is a mean over groups, so averaging micro-batches gives the full-batch value.

    Args:
      params: the student's.
      targets: from `teacher_targets`.
      batch: also "local_crops" [B, V, s, s, C] and "masks" bool [B, 2, P].
      keys: [G], stochastic depth; None turns it off.

    Returns:
      loss, and {"loss/dino_global", "loss/dino_local", "loss/koleo", "loss/ibot"} (each as it
      enters the total before its weight, KoLeo summed over both crops).
    """
    nets, groups = objective.student, batch["mask_indices"].shape[0]
    images, views = batch["local_crops"].shape[:2]
    out = student_features(
        nets.backbone,
        params,
        batch,
        keys,
        masked=objective.masked_student,
        trained=objective.train_backbone,
    )
    patches = None if targets.ibot is None else out.patches
    dino, ibot = nets.scores(params, out.all_cls(), patches)
    global_scores, local_scores = _split_crops(dino, images // groups)
    terms = dino_terms(views)
    parts = {
        "loss/dino_global": dino_global_loss(global_scores, targets.dino) / terms,
        "loss/dino_local": jnp.zeros(()),
        "loss/koleo": 2 * koleo_loss(rearrange(out.global_cls, "g (n v) d -> v g n d", v=2)),
        "loss/ibot": jnp.zeros(()),
    }
    if ibot is not None and targets.ibot is not None:
        parts["loss/ibot"] = ibot_loss(ibot, targets.ibot, batch["mask_weights"], 2 * images)
    if views:
        parts["loss/dino_local"] = dino_local_loss(local_scores, targets.dino) / terms
    # DINOv2: KoLeo and iBOT are reported as they are added, where the reference logs half of them;
    # and KoLeo depends on its own weight alone, also when the DINO loss is switched off.
    loss = (
        objective.dino_weight * (parts["loss/dino_global"] + parts["loss/dino_local"])
        + objective.koleo_weight * parts["loss/koleo"]
        + objective.ibot_weight * parts["loss/ibot"]
    )
    return loss, parts


def _split_crops(scores: Scores, images: int) -> tuple[Scores, Scores]:
    """Scores of a group's cls tokens, global crops first, as [G, n, 2, K] and [G, n, V, K]."""

    def by_image(rows: slice) -> Scores:
        return scores.map_rows(
            lambda x: rearrange(x[:, rows], "g (n v) ... -> g n v ...", n=images)
        )

    return by_image(slice(2 * images)), by_image(slice(2 * images, None))
