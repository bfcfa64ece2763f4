"""Stochastic depth by subset: gather the crops that keep a branch, scatter their residuals back."""

import jax
import jax.numpy as jnp
from jax import Array


def kept_crops(crops: int, drop_rate: float) -> int:
    """How many of `crops` crops a branch computes: truncated like the reference, at least one."""
    return max(int(crops * (1 - drop_rate)), 1)


def split_keys(keys: Array, count: int) -> Array:
    """Keys [G] -> [count, G]; a group's keys do not depend on the groups beside it."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def sample_kept(keys: Array, crops: int, kept: int) -> Array:
    """A random subset of each group's crops: keys [G] -> indices [G, kept]."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, (crops,)))(keys)
    return jnp.argsort(draws, axis=-1)[:, :kept]


def gather(x: Array, index: Array) -> Array:
    """Crops index [G, k] of x [G, b, N, D] -> [G, k, N, D]; each group has its own index."""
    return jax.vmap(lambda rows, i: rows[i])(x, index)


def scale_and_scatter(x: Array, index: Array, gamma: Array | float, branch: Array) -> Array:
    """Adds the residuals of the kept crops to x [G, b, N, D].

    Args:
      index: [G, k], the kept crops.
      gamma: LayerScale [D], or 1.0.
      branch: [G, k, N, D], scaled by gamma * b / k, so that its mean over crops is unchanged.
    """
    update = (x.shape[1] / index.shape[1] * gamma * branch).astype(x.dtype)
    return jax.vmap(lambda rows, i, u: rows.at[i].add(u, unique_indices=True))(x, index, update)
