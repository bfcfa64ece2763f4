"""Exact search for the nearest rows of a bank of features, on one device or split over a mesh.

Similarities are dot products, fp32. Of equal ones the lower row comes first, whatever the size of
blocks and the number of devices or processes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.errors import EvaluationError

# Columns whose maximum is taken first. The k best of a row lie in the k groups of greatest maxima,
# so only k * GROUP of all columns are ever sorted: 51 million similarities, k = 20, on two cores
# 80 ms in one top_k and 20 ms so.
GROUP = 50


class Found(NamedTuple):
    """The k best of each query, best first: similarities [m, k] fp32, rows and labels int32."""

    similarities: Any
    rows: Any
    labels: Any


class _Block(NamedTuple):
    """Rows of the bank: [shards, rows, D], their labels, first row and number of real ones."""

    features: Array
    labels: Array
    first: Array
    count: Array


class Bank:
    """Features on the devices, to be searched many times.

    Under a mesh (`jax.set_mesh`) every device holds an equal share. Of several processes each gives
    its own rows; all search for the same queries, and rows are numbered through the processes.

    Args:
      features [n, D], labels [n]: of this process.
      block: rows of a device that are compared at once.

    Raises:
      EvaluationError: when there are no rows, or not as many labels.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, *, block: int = 65536) -> None:
        if len(features) != len(labels):
            raise EvaluationError(f"a bank of {len(features)} features has {len(labels)} labels")
        mesh = jax.sharding.get_mesh()
        self._mesh = None if mesh.empty or mesh.size == 1 else mesh
        shards = 1 if self._mesh is None else len(self._mesh.local_devices)
        counts = np.array([len(features)])
        if self._mesh is not None and jax.process_count() > 1:
            counts = np.asarray(multihost_utils.process_allgather(counts)).ravel()
        self.size = int(counts.sum())
        if not self.size:
            raise EvaluationError("the bank has 0 rows; check the split and its labels")
        share = -(-int(counts.max()) // shards)  # rows of the fullest device
        start = int(counts[: jax.process_index()].sum()) if len(counts) > 1 else 0
        self._block = min(block, share)
        # Shares are equal on all devices, so that they are one array; the last ones may be short.
        self._padded = bool((counts != share * shards).any())
        features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int32)
        self._blocks = [
            self._place(features, labels, start, share, shards, first)
            for first in range(0, share, self._block)
        ]

    def _place(
        self, features: np.ndarray, labels: np.ndarray, start: int, share: int, shards: int, at: int
    ) -> _Block:
        """Rows `at` to `at + block` of every share."""
        length = min(self._block, share - at)
        begins = np.minimum(np.arange(shards) * share + at, len(features))
        ends = np.minimum(
            begins + length, np.minimum((np.arange(shards) + 1) * share, len(features))
        )

        def stack(x: np.ndarray) -> np.ndarray:
            if shards == 1 and ends[0] - begins[0] == length:
                return x[None, begins[0] : ends[0]]  # a view
            out = np.zeros((shards, length, *x.shape[1:]), x.dtype)
            for shard, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                out[shard, : end - begin] = x[begin:end]
            return out

        parts = stack(features), stack(labels), start + begins, ends - begins
        return _Block(
            *(self._put(np.asarray(p, p.dtype if p.ndim > 1 else np.int32)) for p in parts)
        )

    def _put(self, x: np.ndarray) -> Array:
        if self._mesh is None:
            return jnp.asarray(x)
        sharding = NamedSharding(self._mesh, P(self._mesh.axis_names))
        return jax.make_array_from_process_local_data(sharding, x)

    def search(self, queries: np.ndarray, k: int, *, query_block: int = 1024) -> Found:
        """The k nearest rows of each query [m, D], nearest first, as numpy arrays.

        Raises:
          EvaluationError: for a k that is not between 1 and the number of rows.
        """
        if not 1 <= k <= self.size:
            raise EvaluationError(
                f"k = {k} neighbours of a bank of {self.size} rows; use 1 to all of them"
            )
        queries = np.asarray(queries, np.float32)
        query_block = max(1, min(query_block, len(queries)))
        found = []
        for start in range(0, len(queries), query_block):
            rows = queries[start : start + query_block]
            rows = np.pad(rows, [(0, query_block - len(rows)), (0, 0)])
            best = None
            for block in self._blocks:
                best = _search(rows, block, best, k, self._mesh, self._padded)
            found.append(best)
        parts = [jax.device_get(part) for part in found]
        return Found(*(np.concatenate(p)[: len(queries)] for p in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames=("k", "mesh", "padded"))
def _search(
    queries: Array, block: _Block, best: Found | None, k: int, mesh: Mesh | None, padded: bool
) -> Found:
    """The best of a block, and of those before it."""
    local = functools.partial(_best_of_block, k=k, padded=padded)
    if mesh is None:
        found = local(queries, block)
    else:
        axes = mesh.axis_names

        def of_device(queries: Array, block: _Block) -> Found:
            gather = functools.partial(jax.lax.all_gather, axis_name=axes, axis=1, tiled=True)
            return Found(*map(gather, local(queries, block)))

        split = jax.shard_map(
            of_device, mesh=mesh, in_specs=(P(), P(axes)), out_specs=P(), check_vma=False
        )
        found = split(queries, block)
    if best is None:
        best = Found(*(part[:, :0] for part in found))
    joined = Found(*(jnp.concatenate(pair, axis=1) for pair in zip(best, found, strict=True)))
    if joined.rows.shape[1] <= k and mesh is None and not best.rows.shape[1]:
        return joined
    return _best(joined, k)


def _best(found: Found, k: int) -> Found:
    """The k best of candidates [m, c]; equal ones by row, of which blocks have any order."""
    order = jnp.lexsort((found.rows, -found.similarities), axis=1)[:, :k]
    return Found(*(jnp.take_along_axis(part, order, axis=1) for part in found))


def _best_of_block(queries: Array, block: _Block, *, k: int, padded: bool) -> Found:
    """Of one device's rows. Padding has similarity -inf and a row beyond all others."""
    features, labels, first, count = (part[0] for part in block)
    similarities = jnp.matmul(queries, features.T, precision="highest")
    similarities = jnp.where(similarities == 0, 0.0, similarities)  # -0.0 would sort behind 0.0
    columns = jnp.arange(len(features), dtype=jnp.int32)
    rows = first + columns
    if padded:
        similarities = jnp.where(columns < count, similarities, -jnp.inf)
        rows = jnp.where(columns < count, rows, jnp.iinfo(jnp.int32).max)
    values, where = top_columns(similarities, min(k, len(features)))
    return Found(values, rows[where], labels[where])


def top_columns(values: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` of [m, n] along its rows, by groups of columns; equal values by column.

    Exact: an element among the k best that were outside of the k best groups would have k better
    ones, the maxima of those groups. That holds for equal values too, because groups are contiguous
    and both choices prefer the earlier.
    """
    m, n = values.shape
    groups = n // GROUP
    if groups < 2 * k:
        return jax.lax.top_k(values, k)
    whole = groups * GROUP
    greatest = values[:, :whole].reshape(m, groups, GROUP).max(axis=2)
    chosen = jnp.sort(jax.lax.top_k(greatest, k)[1], axis=1)
    columns = chosen[:, :, None] * GROUP + jnp.arange(GROUP, dtype=chosen.dtype)
    rest = jnp.broadcast_to(jnp.arange(whole, n, dtype=chosen.dtype), (m, n - whole))
    columns = jnp.concatenate([columns.reshape(m, k * GROUP), rest], axis=1)
    best, where = jax.lax.top_k(jnp.take_along_axis(values, columns, axis=1), k)
    return best, jnp.take_along_axis(columns, where, axis=1)
