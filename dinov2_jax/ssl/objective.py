"""The training objective: teacher targets, student forward, the weighted sum of losses.

Batches are grouped: G statistical groups of n images (design 3.3). Everything the reference
computes per GPU (KoLeo neighbours, the stochastic-depth subset, iBOT centres) is per group here.
"""

# DINOv2: groups of `group_size` images instead of GPUs, so that results do not depend on devices.

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from dinov2_jax.models.head import DINOHead, Scores
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ssl import blocked, losses, targets
from dinov2_jax.ssl.microbatches import join_parts, take_part

Params = Mapping[str, Any]
Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules of one side. `ibot_head` None: patches go through the DINO head."""

    backbone: VisionTransformer
    dino_head: DINOHead
    ibot_head: DINOHead | None = None
    in_channels: int = 3

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

    def logits(self, params: Params, cls: Array, patches: Array) -> tuple[Any, Any]:
        """DINO logits of cls tokens and iBOT logits of patch tokens, both [G, rows, D or K].

        A head sees all that goes through it in one pass; `Scores` in place of logits where the
        heads give them.
        """
        if self.ibot_head is None:
            dino, ibot = self.dino_head.apply({"params": params["dino_head"]}, [cls, patches])
            return dino, ibot
        dino = self.dino_head.apply({"params": params["dino_head"]}, cls)
        return dino, self.ibot_head.apply({"params": params["ibot_head"]}, patches)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is optimised: networks of both sides, the centering, and the weights of the losses.

    Attributes:
      micro_batches: parts in which the networks see a batch; divides its groups.
    """

    student: Networks
    teacher: Networks
    micro_batches: int = 1
    centering: str = "centering"
    dino_weight: float = 1.0
    koleo_weight: float = 0.1
    ibot_weight: float = 1.0

    def init_centers(self) -> dict[str, Array]:
        """Loss centres, zero; used by softmax centering only."""
        patch_head = self.student.ibot_head or self.student.dino_head
        return {
            "dino": jnp.zeros((self.student.dino_head.prototypes,)),
            "ibot": jnp.zeros((patch_head.prototypes,)),
        }


def group_crops(x: Array, groups: int) -> Array:
    """[B, V, ...] -> [G, (B/G) V, ...], image before view."""
    return rearrange(x, "(g n) v ... -> g (n v) ...", g=groups)


def masked_patches(patches: Array, indices: Array) -> Array:
    """Patch tokens of a group's global crops at its masked slots: [G, b, P, D], [G, M]."""
    flat = rearrange(patches, "g b p d -> g (b p) d")
    return jax.vmap(lambda rows, i: rows[i])(flat, indices)


def _center(
    objective: Objective,
    logits: Array | Scores,
    center: Array,
    temp: Array,
    valid: Array | None,
) -> tuple[Any, Array]:
    """Targets of one head and its next centre. logits [G, rows, K]; valid [G, rows] or None."""
    factored = isinstance(logits, Scores)
    if objective.centering == "sinkhorn_knopp":
        sinkhorn = blocked.sinkhorn_targets if factored else targets.sinkhorn_knopp
        return sinkhorn(logits, temp, valid), center
    softmax = blocked.center_targets if factored else targets.softmax_center
    features = logits.features if factored else logits
    rows = jnp.ones(features.shape[:2], bool) if valid is None else valid
    statistic = targets.masked_group_mean(features, rows)
    if factored:  # the mean logit is the logit of the mean feature
        statistic = jnp.einsum("d,kd->k", statistic, logits.prototypes, precision="highest")
    return softmax(logits, center, temp), targets.update_center(center, statistic)


def _teacher_features(objective: Objective, params: Params, batch: Batch) -> dict[str, Array]:
    """Of the unmasked global crops: cls tokens [G, 2n, D], patches at masked slots [G, M, D]."""
    groups = batch["mask_indices"].shape[0]
    crops = group_crops(batch["global_crops"], groups)
    out: Any = objective.teacher.backbone.apply({"params": params["backbone"]}, [crops])[0]
    return {"cls": out["cls"], "patches": masked_patches(out["patches"], batch["mask_indices"])}


def _features_in_parts(objective: Objective, params: Params, batch: Batch) -> dict[str, Array]:
    """The same, one micro-batch after the other: targets need the features of the whole batch."""
    parts = objective.micro_batches
    if parts == 1:
        return _teacher_features(objective, params, batch)

    groups = batch["mask_indices"].shape[0]

    def one(index: Array) -> dict[str, Array]:
        wanted = {name: batch[name] for name in ("global_crops", "mask_indices")}
        part = {k: take_part(x, groups, parts, index) for k, x in wanted.items()}
        return _teacher_features(objective, params, part)

    return jax.tree.map(join_parts, jax.lax.map(one, jnp.arange(parts)))


def _views_apart(x: Any) -> Any:
    """Targets of cls tokens [G, 2n, ...] as [G, n, 2, ...]."""
    if isinstance(x, blocked.FactoredTargets):
        features = rearrange(x.scores.features, "g (n v) t d -> g n v t d", v=2)
        row = rearrange(x.row, "g (n v) t -> g n v t", v=2)
        return x.replace(scores=x.scores.replace(features=features), row=row)
    return rearrange(x, "g (n v) k -> g n v k", v=2)


def _split_crops(logits: Any, images: int) -> tuple[Any, Any]:
    """Logits of a group's cls tokens, global crops first, as [G, n, 2, K] and [G, n, V, K]."""
    if isinstance(logits, Scores):
        parts = _split_crops(logits.features, images)
        return logits.replace(features=parts[0]), logits.replace(features=parts[1])
    parts = logits[:, : 2 * images], logits[:, 2 * images :]
    return tuple(rearrange(x, "g (n v) k -> g n v k", n=images) for x in parts)


def teacher_targets(
    objective: Objective, params: Params, centers: Mapping[str, Array], batch: Batch, temp: Array
) -> tuple[dict[str, Any], dict[str, Array]]:
    """What the student is to predict, from the teacher's unmasked view of the global crops.

    Args:
      params: the teacher's.
      batch: "global_crops" [B, 2, S, S, C] normalised, "mask_indices", "mask_weights" [G, M].
      temp: teacher temperature.

    Returns:
      Targets {"dino" [G, n, 2, K], "ibot" [G, M, K]}, factored if the heads give `Scores`, plus
      features for diagnosis, without gradient; and the centres for the next step.
    """
    nets, features = objective.teacher, _features_in_parts(objective, params, batch)
    valid = batch["mask_weights"] > 0
    cls, patches = nets.logits(params, features["cls"], features["patches"])
    dino, dino_center = _center(objective, cls, centers["dino"], temp, None)
    ibot, ibot_center = _center(objective, patches, centers["ibot"], temp, valid)
    found = {"dino": _views_apart(dino), "ibot": ibot, "cls": features["cls"]}
    return jax.lax.stop_gradient((found, {"dino": dino_center, "ibot": ibot_center}))


def part_of_batch(
    objective: Objective, goals: Mapping[str, Any], batch: Batch, keys: Array, index: Array
) -> tuple[dict[str, Any], dict[str, Array], Array]:
    """Targets, batch and keys of one micro-batch, for `student_loss`."""

    groups = batch["mask_indices"].shape[0]

    def take(x: Array) -> Array:
        return take_part(x, groups, objective.micro_batches, index)

    def take_goal(x: Any) -> Any:
        return x.map_rows(take) if isinstance(x, blocked.FactoredTargets) else take(x)

    own_goals = {name: take_goal(x) for name, x in goals.items()}
    return own_goals, {name: take(x) for name, x in batch.items()}, take(keys)


def student_loss(
    params: Params,
    objective: Objective,
    goals: Mapping[str, Any],
    batch: Batch,
    keys: Array | None,
) -> tuple[Array, dict[str, Array]]:
    """The optimised total and its parts (reference-facts 4.7; FB train/ssl_meta_arch.py).

    All of it are means over groups, so the mean over micro-batches is that of the whole batch.

    Args:
      params: the student's.
      goals: from `teacher_targets`.
      batch: also "local_crops" [B, V, s, s, C] and "masks" bool [B, 2, P].
      keys: [G], stochastic depth; None turns it off.

    Returns:
      loss, and {"loss/dino_global", "loss/dino_local", "loss/koleo", "loss/ibot"} (each as it
      enters the total before its weight, KoLeo summed over both crops).
    """
    nets, groups = objective.student, batch["mask_indices"].shape[0]
    views = batch["local_crops"].shape[1]
    crops = [group_crops(batch["global_crops"], groups)]
    masks: list[Array | None] = [group_crops(batch["masks"], groups)]
    if views:
        crops.append(group_crops(batch["local_crops"], groups))
        masks.append(None)
    out = nets.backbone.apply(
        {"params": params["backbone"]}, crops, masks=masks, drop_path_keys=keys
    )
    patches = masked_patches(out[0]["patches"], batch["mask_indices"])
    cls = jnp.concatenate([x["cls"] for x in out], axis=1)
    dino, ibot = nets.logits(params, cls, patches)
    global_logits, local_logits = _split_crops(dino, batch["global_crops"].shape[0] // groups)
    terms = losses.dino_terms(views)
    parts = {
        "loss/dino_global": losses.dino_global_loss(global_logits, goals["dino"]) / terms,
        "loss/dino_local": jnp.zeros(()),
        "loss/koleo": 2 * losses.koleo_loss(rearrange(out[0]["cls"], "g (n v) d -> v g n d", v=2)),
        "loss/ibot": losses.ibot_loss(
            ibot, goals["ibot"], batch["mask_weights"], batch["global_crops"].shape[0] * 2
        ),
    }
    if views:
        parts["loss/dino_local"] = losses.dino_local_loss(local_logits, goals["dino"]) / terms
    # DINOv2: KoLeo and iBOT are reported as they are added, where the reference logs half of them;
    # and KoLeo depends on its own weight alone, also when the DINO loss is switched off.
    loss = (
        objective.dino_weight * (parts["loss/dino_global"] + parts["loss/dino_local"])
        + objective.koleo_weight * parts["loss/koleo"]
        + objective.ibot_weight * parts["loss/ibot"]
    )
    return loss, parts
