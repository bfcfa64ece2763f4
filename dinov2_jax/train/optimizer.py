"""AdamW with per-parameter multipliers, clipping per sub-module, and the EMA teacher.

Source: FB dinov2/utils/param_groups.py, dinov2/train/train.py; reference-facts 2.4 and 7.1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from dinov2_jax.parallel.mesh import path_name

_EMBEDDING = ("cls_token", "pos_embed", "mask_token", "register_tokens", "patch_embed")


class Multipliers(NamedTuple):
    """How one parameter departs from the schedules: factors on lr and weight decay."""

    lr: np.ndarray | float  # [L, 1, ...] for stacked blocks
    weight_decay: float
    is_last_layer: bool
    is_backbone: bool = False

    @property
    def rate(self) -> str:
        """Which of the schedules' rates the parameter follows."""
        if self.is_backbone:
            return "backbone_lr"
        return "last_layer_lr" if self.is_last_layer else "lr"


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
        decay = 0.0 if undecayed else 1.0
        return Multipliers(lr, decay, "last_layer" in names, names[0] == "backbone")

    return jax.tree_util.tree_map_with_path(leaf, params)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Clipping per sub-module, Adam, decoupled decay; a tree of `Multipliers` tells leaves apart.

    Written out, not chained from optax's parts: a step that must leave everything as it is
    multiplies by 0 and 1 here, so that each weight and both its moments are replaced in place. With
    a choice between old and new arrays at the end XLA copies all of them first (40 million
    parameters on two cores: 270 ms and 373 MiB of temporaries, instead of 50 ms and none).

    Attributes:
      multipliers: see `parameter_multipliers`.
      clip_norm: greatest norm of a sub-module's gradient.
    """

    multipliers: Any
    clip_norm: float = 3.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def init(self, params: Any) -> optax.ScaleByAdamState:
        """Moments of zero."""
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), *zeros)

    def update(
        self,
        grads: dict[str, Any],
        norms: Mapping[str, Array],
        state: optax.ScaleByAdamState,
        params: dict[str, Any],
        hyper: Mapping[str, Array],
        finite: Array,
    ) -> tuple[dict[str, Any], optax.ScaleByAdamState]:
        """Parameters and moments after one step, or exactly those from before it.

        A frozen last layer or backbone is only lr 0: its moments go on accumulating, so that its
        first step is no stranger than any later one, and its decay stops too.

        Args:
          grads, norms: of `params`, {"backbone": ..., "dino_head": ...}; see `module_norms`.
          hyper: "lr", "last_layer_lr", "backbone_lr", "weight_decay".
          finite: bool; False leaves all as it is, whatever the gradients are.
        """
        grads = clip_by_module_norm(grads, norms, self.clip_norm)
        grads = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
        count = state.count + finite
        old1, new1 = jnp.where(finite, self.beta1, 1.0), jnp.where(finite, 1 - self.beta1, 0.0)
        old2, new2 = jnp.where(finite, self.beta2, 1.0), jnp.where(finite, 1 - self.beta2, 0.0)
        # The moments start at 0; the divisor is 0 if no step was finite yet, and then unused.
        bias1 = 1 - self.beta1 ** jnp.maximum(count, 1)
        bias2 = 1 - self.beta2 ** jnp.maximum(count, 1)
        mu = jax.tree.map(lambda m, g: old1 * m + new1 * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: old2 * v + new2 * g * g, state.nu, grads)

        def move(p: Array, m: Array, v: Array, by: Multipliers) -> Array:
            lr = jnp.where(finite, hyper[by.rate], 0.0)
            direction = m / bias1 / (jnp.sqrt(v / bias2) + self.eps)
            if by.weight_decay:
                direction += hyper["weight_decay"] * by.weight_decay * p
            return p - lr * jnp.asarray(by.lr, jnp.float32) * direction

        params = jax.tree.map(move, params, mu, nu, self.multipliers)
        return params, optax.ScaleByAdamState(count, mu, nu)


def module_norms(grads: dict[str, Any]) -> dict[str, Array]:
    """Gradient norm of each top-level sub-module (backbone, heads), before clipping."""
    return {name: optax.tree.norm(module) for name, module in grads.items()}


def clip_by_module_norm(
    grads: dict[str, Any], norms: Mapping[str, Array], max_norm: float
) -> dict[str, Any]:
    """Each sub-module scaled by its own norm, to at most `max_norm`."""

    def clip(module: Any, norm: Array) -> Any:
        scale = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale, module)

    return {name: clip(module, norms[name]) for name, module in grads.items()}


def make_optimizer(
    params: Any,
    *,
    depth: int,
    layerwise_decay: float = 0.9,
    patch_embed_multiplier: float = 0.2,
    **settings: float,
) -> AdamW:
    """The optimizer of these parameters, or of their shapes.

    Args:
      depth: blocks of the backbone.
      settings: clip_norm, beta1, beta2.
    """
    multipliers = parameter_multipliers(
        params,
        depth=depth,
        layerwise_decay=layerwise_decay,
        patch_embed_multiplier=patch_embed_multiplier,
    )
    return AdamW(multipliers, **settings)


def ema(teacher: Any, student: Any, momentum: Array) -> Any:
    """t <- m t + (1 - m) s for every parameter, heads and mask token included."""
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)
