"""AdamW for fine-tuning, with a smaller learning rate for earlier blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov2_jax.parallel.mesh import path_name

_TOKENS = ("cls_token", "pos_embed", "mask_token", "register_tokens")
_EMBEDDING = (*_TOKENS, "patch_embed")


def lr_multipliers(params: Any, depth: int, decay: float) -> Any:
    """decay^(depth + 1 - layer): layer 0 is the embedding, i + 1 block i, depth + 1 the rest.

    Args:
      params: {"backbone": ..., ...}; LoRA's factors are treated as their blocks.
    """

    def leaf(path: tuple[Any, ...], value: Any) -> np.ndarray | float:
        names = path_name(path).split("/")
        if names[0] == "lora" or names[:2] == ["backbone", "blocks"]:
            factors = decay ** (depth - np.arange(depth, dtype=np.float64))
            return factors.reshape(-1, *(1,) * (value.ndim - 1)).astype(np.float32)
        if names[0] == "backbone" and names[1] in _EMBEDDING:
            return float(decay ** (depth + 1))
        return 1.0

    return jax.tree_util.tree_map_with_path(leaf, params)


def is_decayed(params: Any) -> Any:
    """True for what weight decay acts on: all kernels and LoRA's factors."""

    def leaf(path: tuple[Any, ...], _: Any) -> bool:
        names = path_name(path).split("/")
        norm = any("norm" in name for name in names)
        return names[-1] not in ("bias", "gamma", *_TOKENS) and not norm

    return jax.tree_util.tree_map_with_path(leaf, params)


def layerwise_adamw(
    params: Any,
    depth: int,
    *,
    lr: float,
    min_lr: float,
    warmup_iterations: int,
    iterations: int,
    layerwise_decay: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """AdamW with a learning rate a layer: linear warm-up from 1e-6 to `lr`, cosine to `min_lr`."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=min(1e-6, lr),
        peak_value=lr,
        warmup_steps=warmup_iterations,
        decay_steps=iterations,
        end_value=min(min_lr, lr),
    )
    factors = lr_multipliers(params, depth, layerwise_decay)
    return optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay, mask=is_decayed(params)),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)),
        optax.scale_by_learning_rate(schedule),
    )
