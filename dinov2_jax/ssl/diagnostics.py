"""Figures that show whether the representation is healthy; the loss does not show it."""

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.ssl.scores import Targets


def effective_rank(features: Array) -> Array:
    """Participation ratio (sum s)^2 / sum s^2 of the covariance's eigenvalues, 1..D.

    features [..., D]. Computed as tr(C)^2 / |C|_F^2, without eigenvalues.
    """
    x = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
    x = x - x.mean(axis=0)
    covariance = jnp.einsum("ni,nj->ij", x, x, precision="highest") / x.shape[0]
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), 1e-20)


def representation_health(
    targets: Targets, cls: Array, crossed: Array, prototypes: int
) -> dict[str, Array]:
    """Teacher entropy, target KL, effective rank and the share of prototypes in use.

    Args:
      targets: of the cls tokens of the global crops, [G, n, 2, K].
      cls: teacher features of these tokens, [G, 2n, D].
      crossed: mean cross-entropy of global crops with the targets of the other crop.
      prototypes: K.

    Returns:
      Scalars: entropy of the targets and KL(target || student) of the other crop, in nats; the
      share of min(rows, K) prototypes that are the most probable one of some row.
    """
    entropies, choices = targets.entropy_and_choice()
    entropy = jnp.mean(entropies)
    used = jnp.zeros((prototypes,)).at[choices.ravel()].max(1.0).sum()
    return {
        "health/teacher_entropy": entropy,
        "health/target_kl": jax.lax.stop_gradient(crossed) - entropy,
        "health/effective_rank": effective_rank(cls),
        "health/prototypes_used": used / min(choices.size, prototypes),
    }
