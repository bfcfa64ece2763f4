"""AdamW with per-parameter multipliers, clipping per sub-module, and the EMA teacher.

Source: FB dinov2/utils/param_groups.py, dinov2/train/train.py.
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
    """Factors of one parameter on the learning rate and the weight decay."""

    lr: np.ndarray | float  # [L, 1, ...] for stacked blocks
    weight_decay: float
    rate: str = "lr"  # name of the schedule that sets the learning rate


def parameter_multipliers(
    params: Any, depth: int, layerwise_decay: float, patch_embed_multiplier: float
) -> Any:
    """A tree like `params` ({"backbone", "dino_head", ...}) of `Multipliers`.

    Learning rate: decay^(depth + 1 - layer), where layer 0 is the embedding, i + 1 block i, and
    depth + 1 the rest. Not decayed: biases, norms and LayerScale. Tokens, positions and prototypes
    are decayed.
    """
    by_layer = layerwise_decay ** np.arange(depth + 1, -1, -1, dtype=np.float64)

    def leaf(path: tuple[Any, ...], value: Any) -> Multipliers:
        names = path_name(path).split("/")
        undecayed = names[-1] in ("bias", "gamma") or any("norm" in name for name in names)
        decay = 0.0 if undecayed else 1.0
        if names[0] != "backbone":
            return Multipliers(1.0, decay, "last_layer_lr" if "last_layer" in names else "lr")
        lr: Any = by_layer[-1]
        if names[1] == "blocks":
            lr = by_layer[1:-1].reshape(-1, *(1,) * (value.ndim - 1))
        elif names[1] in _EMBEDDING:
            lr = by_layer[0] * (patch_embed_multiplier if names[1] == "patch_embed" else 1.0)
        return Multipliers(lr, decay, "backbone_lr")

    return jax.tree_util.tree_map_with_path(leaf, params)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Clipping per sub-module, Adam, decoupled decay, with `Multipliers` for each parameter.

    Not built from optax's parts, because of steps that must change nothing: here they multiply by 0
    and 1, so that XLA updates weights and moments in place. A choice between old and new arrays at
    the end would make XLA copy all of them first.

    Attributes:
      multipliers: see `parameter_multipliers`.
      clip_norm: maximum norm of a sub-module's gradient.
    """

    multipliers: Any
    clip_norm: float = 3.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def init(self, params: Any) -> optax.ScaleByAdamState:
        """Moments of zero."""
        return optax.scale_by_adam().init(params)

    def update(
        self,
        grads: dict[str, Any],
        norms: Mapping[str, Array],
        state: optax.ScaleByAdamState,
        params: dict[str, Any],
        hyper: Mapping[str, Array],
        finite: Array,
    ) -> tuple[dict[str, Any], optax.ScaleByAdamState]:
        """Parameters and moments after one step, or unchanged ones if not `finite`.

        A frozen last layer or backbone has lr 0, and so no decay either. Its moments still
        accumulate, so that its first step after thawing is an ordinary one.

        Args:
          grads: like `params`, {"backbone": ..., "dino_head": ...}.
          norms: of these gradients, from `module_norms`.
          hyper: "lr", "last_layer_lr", "backbone_lr", "weight_decay".
          finite: bool; False changes nothing, whatever the gradients are.
        """
        grads = clip_by_module_norm(grads, norms, self.clip_norm)
        grads = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
        count = state.count + finite
        old1, new1 = jnp.where(finite, self.beta1, 1.0), jnp.where(finite, 1 - self.beta1, 0.0)
        old2, new2 = jnp.where(finite, self.beta2, 1.0), jnp.where(finite, 1 - self.beta2, 0.0)
        # Without a finite step so far the divisors would be 0, though lr is 0 then.
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
    """Scales each sub-module down to a norm of at most `max_norm`."""

    def clip(module: Any, norm: Array) -> Any:
        scale = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale, module)

    return {name: clip(module, norms[name]) for name, module in grads.items()}


def ema(teacher: Any, student: Any, momentum: Array) -> Any:
    """t <- m t + (1 - m) s for every parameter, heads and mask token included."""
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)
