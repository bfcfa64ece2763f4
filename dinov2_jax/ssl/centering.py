"""From the teacher's logits to targets: softmax centering or Sinkhorn-Knopp (paper section 4).

The formulas for logits that are written out; ssl/factored.py has the same for factors.
"""

import jax.numpy as jnp
from jax import Array

from dinov2_jax.ops.log_sum_exp import peak_and_total
from dinov2_jax.ops.max_over_rows import max_over_rows

CENTER_MOMENTUM = 0.9
SINKHORN_ITERATIONS = 3


def softmax_center(logits: Array, center: Array, temp: Array | float) -> Array:
    """Teacher targets softmax((t - c) / temp), fp32; logits [..., K], center [K]."""
    shifted = (logits.astype(jnp.float32) - center) / temp
    peak, total = peak_and_total(shifted)
    return jnp.exp(shifted - peak) / total


def update_center(center: Array, mean: Array) -> Array:
    """c <- 0.9 c + 0.1 mean; used from the next step on (the reference updates lazily)."""
    return center * CENTER_MOMENTUM + mean * (1 - CENTER_MOMENTUM)


def masked_group_mean(x: Array, valid: Array | None = None) -> Array:
    """Mean over each group's valid rows, then over groups: [G, M, K], [G, M] -> [K].

    All groups weigh the same, whatever their number of masked patches, like the ranks of the
    reference (FB dinov2/loss/ibot_patch_loss.py). Without `valid` all rows count.
    """
    weight = jnp.ones(x.shape[:2]) if valid is None else valid.astype(jnp.float32)
    total = jnp.einsum("gm,gmk->gk", weight, x.astype(jnp.float32), precision="highest")
    return jnp.mean(total / jnp.maximum(weight.sum(axis=1, keepdims=True), 1.0), axis=0)


def sinkhorn_knopp(logits: Array, temp: Array | float, valid: Array | None = None) -> Array:
    """Targets whose rows sum to 1 and which use all prototypes almost evenly.

    Computed as two scaling vectors, u over prototypes and v over rows, on the constant matrix
    E = exp(logits / temp), which equals the reference's sequence of normalisations:
    Q = E * u * v with u = 1 / (K sum_b E v), v = 1 / (B sum_k E u). The sums run over the batch.

    Args:
      logits: [..., K], all leading axes are rows.
      temp: teacher temperature.
      valid: [...] True for real rows; padding gets targets of zero and never counts.

    Returns:
      [..., K] fp32.
    """
    prototypes = logits.shape[-1]
    scaled = logits.astype(jnp.float32) / temp
    rows = jnp.ones(logits.shape[:-1], bool) if valid is None else valid
    # u and v absorb a shift per prototype and per row; with both, exp stays in range for gains
    # beyond 3 at temp 0.04 (the reference shifts nothing and overflows at gain / temp = 88).
    scaled -= max_over_rows(jnp.where(rows[..., None], scaled, -jnp.inf))
    row_shift = jnp.max(scaled, axis=-1)
    matrix = jnp.where(rows[..., None], jnp.exp(scaled - row_shift[..., None]), 0.0)
    count = rows.sum()
    tiny = jnp.finfo(jnp.float32).tiny
    v = jnp.where(rows, jnp.exp(row_shift), 0.0)  # the division by the total cancels in u
    for _ in range(SINKHORN_ITERATIONS):
        column_sums = jnp.einsum("...,...k->k", v, matrix, precision="highest")
        u = 1.0 / (prototypes * jnp.maximum(column_sums, tiny))
        row_sums = jnp.einsum("...k,k->...", matrix, u, precision="highest")
        v = jnp.where(rows, 1.0 / (count * jnp.maximum(row_sums, tiny)), 0.0)
    return matrix * u * v[..., None] * count
