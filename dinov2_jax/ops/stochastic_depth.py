"""Stochastic depth by subset: take the tokens that keep a branch, add their residuals back."""

import jax
import jax.numpy as jnp
import numpy as np
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


def rows_of_crops(index: Array, tokens: int, start: int) -> Array:
    """Rows of the tokens of crops: index [G, k] -> [G, k tokens].

    Args:
      tokens: of a crop.
      start: the row of the first token of crop 0.
    """
    rows = index[..., None] * tokens + np.arange(tokens) + start
    return rows.reshape(*index.shape[:-1], -1)


@jax.custom_vjp
def take_rows(x: Array, rows: Array) -> tuple[Array, Array]:
    """Rows [G, t] of x [G, T, D] -> [G, t, D]; and x itself, to which the branch is added.

    Both come from one function because the backward pass then adds the gradient of the rows into
    that of x, in place. A row beyond the last one fills up: it has any value, and no gradient.
    """
    return _take(x, rows), x


def _take(x: Array, rows: Array) -> Array:
    return jax.vmap(lambda x, i: x.at[i].get(mode="clip"))(x, rows)


def _add(x: Array, rows: Array, update: Array) -> Array:
    def one(x: Array, i: Array, u: Array) -> Array:
        return x.at[i].add(u, mode="drop", unique_indices=True)

    return jax.vmap(one)(x, rows, update)


def _take_forward(x: Array, rows: Array) -> tuple[tuple[Array, Array], Array]:
    return take_rows(x, rows), rows


def _take_backward(rows: Array, gradients: tuple[Array, Array]) -> tuple[Array, None]:
    taken, whole = gradients
    return _add(whole, rows, taken), None


take_rows.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def add_rows(x: Array, rows: Array, scale: Array, branch: Array) -> Array:
    """Adds scale * branch to rows of x [G, T, D].

    Args:
      rows: [G, t], without repetition; a row beyond the last one is dropped.
      scale: [t], of each row; 0 for those that are dropped.
      branch: [G, t, D].
    """
    return _add(x, rows, (scale[:, None] * branch).astype(x.dtype))


def _add_forward(
    x: Array, rows: Array, scale: Array, branch: Array
) -> tuple[Array, tuple[Array, ...]]:
    return add_rows(x, rows, scale, branch), (rows, scale, jnp.zeros((), branch.dtype))


def _add_backward(residuals: tuple[Array, ...], dy: Array) -> tuple[Array, None, None, Array]:
    rows, scale, like_branch = residuals
    return dy, None, None, (scale[:, None] * _take(dy, rows)).astype(like_branch.dtype)


add_rows.defvjp(_add_forward, _add_backward)
