"""Figures that tell whether the representation is alive (the loss does not)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.ssl.losses import cross_entropy


def effective_rank(features: Array) -> Array:
    """Participation ratio (sum s)^2 / sum s^2 of the covariance's eigenvalues, 1..D.

    features [..., D]; needs no eigenvalues: tr(C)^2 / |C|_F^2.
    """
    x = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
    x = x - x.mean(axis=0)
    covariance = jnp.einsum("ni,nj->ij", x, x, precision="highest") / x.shape[0]
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), 1e-20)


def representation_health(goals: Mapping[str, Array], student_logits: Array) -> dict[str, Array]:
    """Teacher entropy, target KL, effective rank and the share of prototypes in use.

    Args:
      goals: "dino" targets [G, n, 2, K], "cls" teacher features [G, 2n, D].
      student_logits: global cls logits [G, n, 2, K].

    Returns:
      Scalars: entropy of the targets and KL(target || student) of the other crop, in nats; the
      share of min(rows, K) prototypes that are some row's first choice.
    """
    target, logits = goals["dino"], jax.lax.stop_gradient(student_logits)
    entropy = -jnp.mean(jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1))
    crossed = jnp.mean(cross_entropy(logits, jnp.flip(target, axis=-2)))
    rows, prototypes = target.size // target.shape[-1], target.shape[-1]
    chosen = jnp.argmax(target, axis=-1).ravel()
    used = jnp.zeros((prototypes,)).at[chosen].max(1.0).sum()
    return {
        "health/teacher_entropy": entropy,
        "health/target_kl": crossed - entropy,
        "health/effective_rank": effective_rank(goals["cls"]),
        "health/prototypes_used": used / min(rows, prototypes),
    }
