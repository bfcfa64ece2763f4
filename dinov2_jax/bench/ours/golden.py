"""The reference's steps in tests/golden: weights, batches and settings for our modules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.models.head import DINOHead
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ssl.objective import Networks, Objective
from dinov2_jax.train.optimizer import AdamW
from dinov2_jax.train.state import TrainState, init_state
from dinov2_jax.weights.convert import from_reference, to_reference

PATCH = 7  # px
Vectors = dict[str, np.ndarray]  # the arrays of a file


def load_params(data: Vectors, prefix: str) -> dict[str, Any]:
    """{module: parameters} of the arrays below `prefix`, such as "init/student/"."""
    modules: dict[str, Any] = {}
    for key, value in data.items():
        if key.startswith(prefix):
            module, name = key.removeprefix(prefix).split(".", 1)
            modules.setdefault(module, {})[name] = value
    return {module: from_reference(flat) for module, flat in modules.items()}


def flatten(params: dict[str, Any]) -> Vectors:
    """The reference's names: "module.weight"."""
    return {
        f"{module}.{key}": value
        for module, tree in params.items()
        for key, value in to_reference(tree, PATCH).items()
    }


def networks(params: dict[str, Any], crop_px: int, dtype: Any = jnp.float32) -> Networks:
    """The modules that have these parameters."""
    backbone = params["backbone"]
    swiglu = "w12" in backbone["blocks"]["mlp"]
    registers = backbone["register_tokens"].shape[1] if "register_tokens" in backbone else 0
    vit = VisionTransformer(
        dim=backbone["cls_token"].shape[-1],
        depth=backbone["blocks"]["norm1"]["scale"].shape[0],
        heads=3,
        patch_size=PATCH,
        image_size=crop_px,
        ffn="swiglu" if swiglu else "mlp",
        registers=registers,
        dtype=dtype,
    )

    def head(name: str) -> DINOHead:
        prototypes, bottleneck = params[name]["last_layer"]["weight_v"].shape
        hidden = params[name]["mlp_0"]["bias"].shape[0]
        return DINOHead(prototypes, hidden_dim=hidden, bottleneck_dim=bottleneck, dtype=dtype)

    return Networks(vit, head("dino_head"), head("ibot_head") if "ibot_head" in params else None)


def objective_of(name: str, data: Vectors, dtype: Any = jnp.float32) -> Objective:
    """The objective of the file `name`; `dtype` is that of matrix products."""
    params = load_params(data, "init/student/")
    nets = networks(params, data["step0/collated_global_crops"].shape[-1], dtype)
    centering = "centering" if name == "step_centering" else "sinkhorn_knopp"
    return Objective(nets, nets, centering=centering)


def image_major(x: np.ndarray, images: int) -> np.ndarray:
    """Crop-major [V * B, ...] -> [B, V, ...]."""
    return np.swapaxes(x.reshape(-1, images, *x.shape[1:]), 0, 1)


def batch_of(data: Vectors, step: int) -> dict[str, Array]:
    """A batch of one group, see ssl/objective.py."""
    get = {
        k.removeprefix(f"step{step}/"): v for k, v in data.items() if k.startswith(f"step{step}/")
    }
    images = get["collated_global_crops"].shape[0] // 2
    patches = get["collated_masks"].shape[1]
    slots = int(get["upperbound"])
    view, image = np.divmod(get["mask_indices_list"] // patches, images)
    flat = (image * 2 + view) * patches + get["mask_indices_list"] % patches
    indices, weights = np.zeros((1, slots), np.int32), np.zeros((1, slots), np.float32)
    indices[0, : len(flat)], weights[0, : len(flat)] = flat, get["masks_weight"]
    crops = {
        name: image_major(get[f"collated_{name}"].transpose(0, 2, 3, 1), images)
        for name in ("global_crops", "local_crops")
    }
    masks = image_major(get["collated_masks"], images)
    batch = crops | {"masks": masks, "mask_indices": indices, "mask_weights": weights}
    return jax.tree.map(jnp.asarray, batch)


def hyper_of(data: Vectors, step: int) -> dict[str, Array]:
    """The schedules' values at a step."""
    names = {
        "lr": "lr",
        "last_layer_lr": "last_lr",
        "backbone_lr": "lr",
        "weight_decay": "wd",
        "momentum": "mom",
        "teacher_temp": "temp",
    }
    return {ours: jnp.float32(data[f"step{step}/{theirs}"]) for ours, theirs in names.items()}


def optimizer_settings(data: Vectors, objective: Objective) -> dict[str, Any]:
    """Arguments of `parameter_multipliers`."""
    mult = dict(zip(data["groups/names"].tolist(), data["groups/lr_mult"].tolist(), strict=True))
    depth = objective.student.backbone.depth
    decay = mult["backbone.cls_token"] ** (1 / (depth + 1))
    return {"depth": depth, "layerwise_decay": round(decay, 6), "patch_embed_multiplier": 0.2}


def initial_state(data: Vectors, objective: Objective, optimizer: AdamW) -> TrainState:
    """The state before the first step."""
    student, teacher = (
        jax.tree.map(jnp.asarray, load_params(data, f"init/{side}/"))
        for side in ("student", "teacher")
    )
    size, key = data["step0/collated_global_crops"].shape[-1], jax.random.key(0)
    fresh = jax.eval_shape(lambda k: init_state(k, objective, optimizer, size), key)
    same = jax.tree.map(lambda a, b: a.shape == b.shape, fresh.student, student)
    assert all(jax.tree.leaves(same))
    counters = ("step", "nonfinite_steps", "nonfinite_streak")
    return fresh.replace(
        student=student,
        teacher=teacher,
        opt_state=optimizer.init(student),
        centers=objective.init_centers(),
        rng=key,
        **{name: jnp.zeros((), jnp.int32) for name in counters},
    )


def logged(metrics: dict[str, Array]) -> dict[str, Array]:
    """A step's losses as the reference logs them."""
    return {
        "dino_local_crops_loss": metrics["loss/dino_local"],
        "dino_global_crops_loss": metrics["loss/dino_global"],
        "koleo_loss": 0.1 * metrics["loss/koleo"] / 2,  # the reference logs half of both
        "ibot_loss": metrics["loss/ibot"] / 2,
    }
