"""Figures that tell whether the representation is alive (the loss does not)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.ssl.blocked import FactoredTargets, entropy_and_choice


def effective_rank(features: Array) -> Array:
    """Participation ratio (sum s)^2 / sum s^2 of the covariance's eigenvalues, 1..D.

    features [..., D]; needs no eigenvalues: tr(C)^2 / |C|_F^2.
    """
    x = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
    x = x - x.mean(axis=0)
    covariance = jnp.einsum("ni,nj->ij", x, x, precision="highest") / x.shape[0]
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), 1e-20)


def _entropy_and_choice(target: Array | FactoredTargets) -> tuple[Array, Array]:
    """Of every target its entropy in nats and its first prototype."""
    if isinstance(target, FactoredTargets):
        return entropy_and_choice(target)
    entropy = -jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1)
    return entropy, jnp.argmax(target, axis=-1)


def representation_health(
    goals: Mapping[str, Any], crossed: Array, prototypes: int
) -> dict[str, Array]:
    """Teacher entropy, target KL, effective rank and the share of prototypes in use.

    Args:
      goals: "dino" targets [G, n, 2, K], "cls" teacher features [G, 2n, D].
      crossed: mean cross-entropy of global crops with the targets of the other crop.
      prototypes: K.

    Returns:
      Scalars: entropy of the targets and KL(target || student) of the other crop, in nats; the
      share of min(rows, K) prototypes that are some row's first choice.
    """
    entropies, chosen = _entropy_and_choice(goals["dino"])
    entropy = jnp.mean(entropies)
    used = jnp.zeros((prototypes,)).at[chosen.ravel()].max(1.0).sum()
    return {
        "health/teacher_entropy": entropy,
        "health/target_kl": jax.lax.stop_gradient(crossed) - entropy,
        "health/effective_rank": effective_rank(goals["cls"]),
        "health/prototypes_used": used / min(chosen.size, prototypes),
    }
