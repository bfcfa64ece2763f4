"""Connected components: all that a chain of copies links, named by its lowest row."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_MOST_INT32 = 2**31 - 1


def labels(nodes: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The lowest row of each row's component: int64 [nodes].

    `a` and `b` [E] are the edges' ends; repeated edges and loops do no harm. Every round hooks
    the higher root of an edge to the lower one and quarters the paths, so a chain takes about
    log4(nodes) rounds. Only whole numbers are compared, so devices and the order of the edges
    change nothing. Needs 12 bytes a node and 16 bytes an edge on the device; edges that do not fit
    go to `labels_in_batches`.
    """
    if nodes > _MOST_INT32:
        return labels_in_batches(nodes, [(a, b)])
    if not len(a):
        return np.arange(nodes, dtype=np.int64)
    ends = (np.asarray(end, np.int32) for end in (a, b))
    return np.asarray(_hook(nodes, *ends)).astype(np.int64)


@partial(jax.jit, static_argnums=0)
def _hook(nodes: int, a: jax.Array, b: jax.Array) -> jax.Array:
    def improve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        label, _ = state
        root_a, root_b = label[a], label[b]
        hooked = label.at[jnp.maximum(root_a, root_b)].min(jnp.minimum(root_a, root_b))
        hooked = hooked[hooked]
        hooked = hooked[hooked]
        return hooked, jnp.any(hooked != label)

    start = (jnp.arange(nodes, dtype=jnp.int32), jnp.asarray(True))
    return jax.lax.while_loop(lambda state: state[1], improve, start)[0]


def labels_in_batches(nodes: int, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """`labels` for edges that come in batches (a [E], b [E]): int64 [nodes], in host memory.

    Needs 8 bytes a node twice and about 50 bytes for each edge of a batch, for any number of edges.
    """
    label = np.arange(nodes, dtype=np.int64)
    for a, b in batches:
        _merge(label, np.asarray(a, np.int64), np.asarray(b, np.int64))
    return label


def _merge(label: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Joins components along edges, in place; before and after, each label is a root."""
    while True:
        a, b = label[a], label[b]
        apart = a != b
        if not apart.any():
            return
        a, b = a[apart], b[apart]
        np.minimum.at(label, np.maximum(a, b), np.minimum(a, b))
        _flatten(label)


def _flatten(label: np.ndarray) -> None:
    while True:
        jumped = label[label]
        if np.array_equal(jumped, label):
            return
        label[:] = jumped
