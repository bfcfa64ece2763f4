"""Exact nearest-neighbour search and ranking of features, on one device or split over a mesh.

Similarities are fp32 dot products. Among equal similarities the lower row comes first, whatever the
block sizes and the number of devices or processes.
"""

# DINOv2: no code for retrieval was published, and the paper states neither resolution nor scales.

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.errors import EvaluationError

# Columns whose maximum is taken first. The k best of a row lie in the k groups with the greatest
# maxima, so only k * GROUP of all columns are ever sorted.
GROUP = 50


def unit(features: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """L2-normalises features [..., D] in `dtype`; zeros stay zeros."""
    features = np.asarray(features, dtype)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


class Found(NamedTuple):
    """The k nearest rows of each query: similarities fp32, rows int32, labels int32, all [m, k]."""

    similarities: Any
    rows: Any
    labels: Any


class _Block(NamedTuple):
    """Rows of the bank [shards, rows, D], their labels, and a shard's first row and row count."""

    features: Array
    labels: Array
    first: Array
    count: Array


class Bank:
    """Features on the devices, ready for many searches.

    Under a mesh (`jax.set_mesh`) every device holds an equal share. With several processes, each
    passes its own rows; all pass the same queries, and row numbers run through the processes.

    Args:
      features: [n, D], the rows of this process.
      labels: int [n].
      block: rows of a device that are compared at once.

    Raises:
      EvaluationError: there are no rows, or the number of labels differs.
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
        share = -(-int(counts.max()) // shards)  # rows on the fullest device
        start = int(counts[: jax.process_index()].sum()) if len(counts) > 1 else 0
        self._block = min(block, share)
        # Shares have one length, so that they form one array; the last ones may be padded.
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
        edges = np.arange(shards) * share + at
        begins, ends = (np.minimum(edge, len(features)) for edge in (edges, edges + length))

        def stack(x: np.ndarray) -> np.ndarray:
            if shards == 1 and ends[0] - begins[0] == length:
                return x[None, begins[0] : ends[0]]  # a view
            out = np.zeros((shards, length, *x.shape[1:]), x.dtype)
            for shard, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                out[shard, : end - begin] = x[begin:end]
            return out

        ranges = (np.asarray(x, np.int32) for x in (start + begins, ends - begins))
        return _Block(*map(self._put, (stack(features), stack(labels), *ranges)))

    def _put(self, x: np.ndarray) -> Array:
        if self._mesh is None:
            return jnp.asarray(x)
        sharding = NamedSharding(self._mesh, P(self._mesh.axis_names))
        return jax.make_array_from_process_local_data(sharding, x)

    def search(self, queries: np.ndarray, k: int, *, query_block: int = 1024) -> Found:
        """Finds the k nearest rows of each query [m, D], nearest first, as numpy arrays.

        Raises:
          EvaluationError: k is not between 1 and the number of rows.
        """
        parts = list(self.search_blocks(queries, k, query_block=query_block))
        return Found(*map(np.concatenate, zip(*parts, strict=True)))

    def search_blocks(
        self, queries: np.ndarray, k: int, *, query_block: int = 1024
    ) -> Iterator[Found]:
        """Yields what `search` finds for one block of queries after another.

        The device searches for the next block meanwhile, and holds the results of two.
        """
        if not 1 <= k <= self.size:
            raise EvaluationError(
                f"k = {k} neighbours of a bank of {self.size} rows; use 1 to all of them"
            )
        left, waiting = len(queries), None
        for rows in _blocks(np.asarray(queries, np.float32), query_block):
            best = None
            for block in self._blocks:
                best = _search(rows, block, best, k, self._mesh, self._padded)
            if waiting is not None:
                yield Found(*jax.device_get(waiting))
                left -= len(rows)
            waiting = best
        if waiting is not None:
            yield Found(*(part[:left] for part in jax.device_get(waiting)))


@functools.partial(jax.jit, static_argnames=("k", "mesh", "padded"))
def _search(
    queries: Array, block: _Block, best: Found | None, k: int, mesh: Mesh | None, padded: bool
) -> Found:
    """Merges the best rows of a block with the best of the blocks before it."""
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
    if best is not None:
        found = Found(*(jnp.concatenate(pair, axis=1) for pair in zip(best, found, strict=True)))
    elif mesh is None:
        return found  # in order already
    # Equal similarities by row, as blocks come in any order.
    order = jnp.lexsort((found.rows, -found.similarities), axis=1)[:, :k]
    return Found(*(jnp.take_along_axis(part, order, axis=1) for part in found))


def _best_of_block(queries: Array, block: _Block, *, k: int, padded: bool) -> Found:
    """The k best of one device's rows. Padding has similarity -inf and the greatest row number."""
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
    """`jax.lax.top_k` of [m, n] along each row, by groups of columns; equal values by column.

    Exact: if one of the k best lay outside the k best groups, the k maxima of those groups would be
    better than it. This holds for equal values too: groups are contiguous, and both choices prefer
    the earlier one.
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


def search(
    database: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    database_block: int = 65536,
    query_block: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest database rows of every query by cosine similarity, nearest first.

    Args:
      database: [n, D], features of any norm.
      queries: [m, D].
      k: at least 1; more than n means n.
      database_block: database rows on the device at once.
      query_block: queries on the device at once.

    Returns:
      similarities fp32 [m, min(k, n)] and database rows int32 [m, min(k, n)].

    Raises:
      EvaluationError: a side is empty, widths differ, a value is not finite, or k is below 1.
    """
    if k < 1:
        raise EvaluationError(f"k={k} finds nothing; the least is 1")
    database, queries = unit_rows(database, queries)
    bank = Bank(database, np.arange(len(database)), block=database_block)
    found = bank.search(queries, min(k, len(database)), query_block=query_block)
    return found.similarities, found.rows


def rank_all(
    database: np.ndarray, queries: np.ndarray, *, database_block: int = 65536, query_block: int = 64
) -> np.ndarray:
    """Sorts the whole database for every query, int32 [m, n], nearest row first.

    The device holds one block of queries with all n similarities, and one block of the database:
    64 queries against a million rows take 0.25 GB, and the sorted row numbers as much again.
    Arguments and errors are those of `search`.
    """
    database, queries = unit_rows(database, queries)
    ranked = []
    for rows in _blocks(queries, query_block):
        parts = [_similarity(rows, block) for block in _blocks(database, database_block)]
        ranked.append(np.asarray(_sort(jnp.concatenate(parts, axis=1)[:, : len(database)])))
    return np.concatenate(ranked)[: len(queries)]


def unit_rows(database: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L2-normalises both sides to fp32.

    Raises:
      EvaluationError: a side is empty, widths differ, or a value is not finite.
    """
    database, queries = np.asarray(database, np.float32), np.asarray(queries, np.float32)
    for name, rows in (("database", database), ("queries", queries)):
        if not len(rows):
            raise EvaluationError(f"the {name} of a retrieval is empty; check its list of pictures")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise EvaluationError(
                f"row {bad[0]} of the {name} is not finite ({len(bad)} such rows), as of a picture "
                "that could not be read; repair or leave out these pictures"
            )
    if database.shape[1] != queries.shape[1]:
        raise EvaluationError(
            f"the database has {database.shape[1]} features a picture, the queries "
            f"{queries.shape[1]}"
        )
    return unit(database), unit(queries)


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yields blocks of one length, so that one program serves all; the last is zero-padded."""
    size = min(size, len(rows))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        yield np.pad(block, [(0, size - len(block)), (0, 0)])


@jax.jit
def _similarity(queries: Array, block: Array) -> Array:
    similarity = jnp.einsum("qd,bd->qb", queries, block, precision="highest")
    return jnp.where(similarity == 0, 0.0, similarity)  # -0.0 would sort behind 0.0


@jax.jit
def _sort(similarity: Array) -> Array:
    return jnp.argsort(-similarity, axis=1, stable=True).astype(jnp.int32)


def multi_scale_features(by_scale: Sequence[np.ndarray]) -> np.ndarray:
    """Normalises features [n, D] of several scales, averages them and normalises the mean."""
    return unit(np.mean([unit(features) for features in by_scale], axis=0))
