"""AdamW with per-parameter multipliers, clipping per sub-module, and the EMA teacher.

Source: FB dinov2/utils/param_groups.py, dinov2/train/train.py; reference-facts 2.4 and 7.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from dinov2_jax.sharding import path_name

_EMBEDDING = ("cls_token", "pos_embed", "mask_token", "register_tokens", "patch_embed")


class Multipliers(NamedTuple):
    """How one parameter departs from the schedules: factors on lr and weight decay."""

    lr: np.ndarray | float  # [L, 1, ...] for stacked blocks
    weight_decay: float
    is_last_layer: bool


def _lr_multiplier(
    names: list[str], ndim: int, depth: int, layerwise_decay: float, patch_embed_multiplier: float
) -> np.ndarray | float:
    """decay^(depth + 1 - layer): layer 0 is the embedding, i + 1 block i, depth + 1 the rest."""
    if names[0] != "backbone":
        return 1.0
    if names[1] == "blocks":
        layers = np.arange(1, depth + 1)
        factors = layerwise_decay ** (depth + 1 - layers).astype(np.float64)
        return factors.reshape(-1, *(1,) * (ndim - 1))
    if names[1] in _EMBEDDING:
        factor = layerwise_decay ** (depth + 1)
        return factor * (patch_embed_multiplier if names[1] == "patch_embed" else 1.0)
    return 1.0


def parameter_multipliers(
    params: Any, *, depth: int, layerwise_decay: float, patch_embed_multiplier: float
) -> Any:
    """A tree like `params` ({"backbone", "dino_head", ...}) of `Multipliers`.

    Not decayed: biases, norms and LayerScale. Tokens, positions and prototypes are decayed.
    """

    def leaf(path: tuple[Any, ...], value: Any) -> Multipliers:
        names = path_name(path).split("/")
        undecayed = names[-1] in ("bias", "gamma") or any("norm" in name for name in names)
        lr = _lr_multiplier(names, value.ndim, depth, layerwise_decay, patch_embed_multiplier)
        return Multipliers(lr, 0.0 if undecayed else 1.0, "last_layer" in names)

    return jax.tree_util.tree_map_with_path(leaf, params)


def clip_by_module_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips each top-level sub-module (backbone, heads) to its own norm, not all together."""
    # DINOv2: the reference divides by norm + 1e-6, which changes a clipped gradient by 3e-7.
    clip = optax.clip_by_global_norm(max_norm)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        clipped = {name: clip.update(module, state)[0] for name, module in grads.items()}
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_schedules(multipliers: Any) -> optax.GradientTransformationExtraArgs:
    """Decoupled decay and learning rate: u <- -lr m_lr (u + wd m_wd p).

    The update takes `lr`, `last_layer_lr` and `weight_decay` as extra arguments. A frozen last
    layer is only lr 0: its moments go on accumulating, and its decay stops too.
    """

    def update(updates: Any, state: Any, params: Any = None, **hyper: Array) -> tuple[Any, Any]:
        def scale(u: Array, p: Array, m: Multipliers) -> Array:
            lr = hyper["last_layer_lr"] if m.is_last_layer else hyper["lr"]
            decayed = u + hyper["weight_decay"] * p if m.weight_decay else u
            return -lr * jnp.asarray(m.lr, jnp.float32) * decayed

        return jax.tree.map(scale, updates, params, multipliers), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def make_optimizer(
    params: Any,
    *,
    depth: int,
    layerwise_decay: float = 0.9,
    patch_embed_multiplier: float = 0.2,
    clip_norm: float = 3.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> optax.GradientTransformationExtraArgs:
    """clip per sub-module -> Adam -> decay and learning rates.

    Args:
      params: the student's parameters, or their shapes.
      clip_norm: greatest norm of a sub-module's gradient.
    """
    multipliers = parameter_multipliers(
        params,
        depth=depth,
        layerwise_decay=layerwise_decay,
        patch_embed_multiplier=patch_embed_multiplier,
    )
    return optax.chain(
        clip_by_module_norm(clip_norm),
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=1e-8),
        scale_by_schedules(multipliers),
    )


def module_norms(grads: dict[str, Any]) -> dict[str, Array]:
    """Gradient norm of each sub-module before clipping, {"grad_norm/backbone": ...}."""
    return {f"grad_norm/{name}": optax.tree.norm(module) for name, module in grads.items()}


def ema(teacher: Any, student: Any, momentum: Array) -> Any:
    """t <- m t + (1 - m) s for every parameter, heads and mask token included."""
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)
