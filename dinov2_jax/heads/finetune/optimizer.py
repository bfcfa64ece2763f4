"""The settings of fine-tuning and its AdamW, with a smaller rate for earlier blocks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.finetune.lora import Lora
from dinov2_jax.parallel.mesh import path_name

_TOKENS = ("cls_token", "pos_embed", "mask_token", "register_tokens")
_EMBEDDING = (*_TOKENS, "patch_embed")


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """How backbone and head are trained."""

    iterations: int = 50_000  # 20 epochs of ImageNet at this batch size
    batch_size: int = 512  # images over all devices; lr is for this size, it is not scaled
    group_size: int = 64  # images that share a draw of mixing and of drop_path; divides the batch
    lr: float = 1e-5  # peak of a cosine after a linear warm-up of warmup_iterations
    min_lr: float = 1e-6  # end of the cosine
    warmup_iterations: int = 12_500
    layerwise_decay: float = 1.0  # factor on lr from one block to the one below; 1 for none
    weight_decay: float = 0.1  # of kernels; not of biases, norms, LayerScale and tokens
    # Stochastic depth, the same in all blocks (DeiT III: B 0.2, L 0.45, H 0.55).
    drop_path: float = 0.2
    smoothing: float = 0.1  # this and the next two: see mixing.py
    mixup: float = 0.8
    cutmix: float = 1.0
    # Decay of the averaged weights, which are the result; lower at first, (1 + i) / (10 + i).
    ema: float = 0.99996
    avgpool: bool = False  # the head reads the mean patch beside cls
    lora: Lora | None = None  # train low-rank factors in place of the backbone
    seed: int = 0  # of head, order, crops, mixing and stochastic depth
    save_every: int = 1000  # iterations between two states on disk


def check_settings(settings: FinetuneSettings) -> None:
    """Refuses a group or a warm-up that does not fit, by an EvaluationError."""
    if settings.batch_size % settings.group_size:
        raise EvaluationError(
            f"batch_size {settings.batch_size} is no multiple of group_size {settings.group_size}; "
            "give a group_size that divides it"
        )
    if settings.warmup_iterations >= settings.iterations:
        raise EvaluationError(
            f"warmup_iterations {settings.warmup_iterations} leave nothing of "
            f"{settings.iterations} iterations; a quarter of them is usual"
        )


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
    params: Any, depth: int, settings: FinetuneSettings
) -> optax.GradientTransformation:
    """AdamW with a learning rate a layer: linear warm-up from 1e-6 to `lr`, cosine to `min_lr`."""
    lr = settings.lr
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=min(1e-6, lr),
        peak_value=lr,
        warmup_steps=settings.warmup_iterations,
        decay_steps=settings.iterations,
        end_value=min(settings.min_lr, lr),
    )
    factors = lr_multipliers(params, depth, settings.layerwise_decay)
    return optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(settings.weight_decay, mask=is_decayed(params)),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)),
        optax.scale_by_learning_rate(schedule),
    )
