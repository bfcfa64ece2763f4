"""Which products of a pool's rows lie above a threshold: dense, of one shape, one bit each.

Only bits leave the device, 32 to a word, so that no result has a size that depends on the data.
"""

import functools
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS = 128  # of a piece
COLUMNS = 512  # of a piece
_PIECES = {"cpu": 64, "default": 1024}  # of a device at once
# Rounding of unit rows to fp16 and, other than on a CPU, of products to bf16.
_MARGIN = {"cpu": 1e-3, "default": 1e-2}


class Piece(NamedTuple):
    """Rows `first` to `first + count`, at most `ROWS`, and the at most `COLUMNS` others they meet.

    Pieces of one `group` follow each other. Pairs (i, j) of rows that both lie in `own` are told
    for i < j only.
    """

    group: int
    first: int
    count: int
    columns: np.ndarray
    own: range


class Pool:
    """Unit rows fp16 [n, D], in the order given, whole on every device of the mesh."""

    def __init__(self, rows: np.ndarray, order: np.ndarray) -> None:
        mesh = jax.sharding.get_mesh()
        self.mesh: Mesh | None = None if mesh.empty or mesh.size == 1 else mesh
        self.shards = 1 if self.mesh is None else self.mesh.size
        padded = np.zeros((len(rows) + ROWS, rows.shape[1]), np.float16)
        for start in range(0, len(rows), 2**16):
            part = order[start : start + 2**16]
            padded[start : start + len(part)] = rows[part]
        self.rows = jnp.asarray(padded) if self.mesh is None else self._put(padded, P())

    def _put(self, x: np.ndarray, spec: P) -> Array:
        assert self.mesh is not None
        return jax.device_put(x, NamedSharding(self.mesh, spec))

    def split(self, x: np.ndarray) -> Array:
        """One part of the first axis to each device."""
        x = x.reshape(self.shards, -1, *x.shape[1:])
        return jnp.asarray(x) if self.mesh is None else self._put(x, P(self.mesh.axis_names))


def rows_near(
    pool: Pool, pieces: Iterable[Piece], threshold: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (group, int64 [p, 2]): pairs of positions i, j of each group.

    It finds all pairs above the threshold and some just below it, as products are rounded.
    """
    kind = "cpu" if jax.default_backend() == "cpu" else "default"
    least = np.float32(threshold - _MARGIN[kind])
    group, parts = None, []
    for number, pairs in _in_turn(pool, pieces, least, _PIECES[kind] * pool.shards):
        if group is not None and number != group:
            yield group, np.concatenate(parts)
            parts = []
        group = number
        parts.append(pairs)
    if group is not None:
        yield group, np.concatenate(parts)


def _in_turn(
    pool: Pool, pieces: Iterable[Piece], least: np.float32, size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The pairs of each group, whose pieces may lie in several batches."""
    waiting, left = None, iter(pieces)
    while batch := tuple(islice(left, size)):
        first = np.zeros(size, np.int32)
        first[: len(batch)] = [piece.first for piece in batch]
        columns = np.full((size, COLUMNS), -1, np.int32)
        for row, piece in zip(columns, batch, strict=False):
            row[: len(piece.columns)] = piece.columns
        words = _above(pool.rows, pool.split(first), pool.split(columns), least, mesh=pool.mesh)
        if waiting is not None:
            yield from _read(*waiting)
        waiting = batch, columns, words
    if waiting is not None:
        yield from _read(*waiting)


def _read(
    batch: tuple[Piece, ...], columns: np.ndarray, words: Array
) -> Iterator[tuple[int, np.ndarray]]:
    """Pairs of positions from bits, by group."""
    bits = np.asarray(words).reshape(len(columns), ROWS, -1)
    piece, row, word = np.nonzero(bits)
    set_bits = bits[piece, row, word][:, None] >> np.arange(32, dtype=np.uint32) & 1
    which, bit = np.nonzero(set_bits)
    piece, row, word = piece[which], row[which], word[which]
    known = piece < len(batch)  # the rest pads the last batch
    piece, row, word, bit = piece[known], row[known], word[known], bit[known]
    numbers = [(p.first, p.count, p.group, p.own.start, p.own.stop) for p in batch]
    first, count, groups, start, stop = np.array(numbers, np.int64).T
    i = first[piece] + row
    j = columns[piece, bit * (COLUMNS // 32) + word].astype(np.int64)
    within = (start[piece] <= j) & (j < stop[piece])
    good = (row < count[piece]) & (j >= 0) & ((i < j) | ~within)
    pairs, of = np.stack([i, j], axis=1)[good], groups[piece][good]
    changes = np.concatenate([[0], np.flatnonzero(np.diff(groups)) + 1])
    for group in groups[changes].tolist():
        yield group, pairs[of == group]


@functools.partial(jax.jit, static_argnames="mesh")
def _above(rows: Array, first: Array, columns: Array, least: Array, *, mesh: Mesh | None) -> Array:
    """Bits [shards, pieces, ROWS, COLUMNS / 32]: bit b of word w is column b * COLUMNS / 32 + w."""
    if mesh is None:
        return _above_of_device(rows, first, columns, least)
    split = P(mesh.axis_names)
    return jax.shard_map(
        _above_of_device, mesh=mesh, in_specs=(P(), split, split, P()), out_specs=split,
        check_vma=False,
    )(rows, first, columns, least)  # fmt: skip


def _above_of_device(rows: Array, first: Array, columns: Array, least: Array) -> Array:
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16

    def compare(piece: tuple[Array, Array]) -> Array:
        start, others = piece
        mine = jax.lax.dynamic_slice_in_dim(rows, start, ROWS).astype(dtype)
        theirs = rows[others].astype(dtype)
        products = jnp.matmul(mine, theirs.T, preferred_element_type=jnp.float32)
        # Words run along the rows: packing neighbours would cost a tenth of the product on a CPU.
        set_bits = (products > least).reshape(ROWS, 32, COLUMNS // 32).astype(jnp.uint32)
        return (set_bits << jnp.arange(32, dtype=jnp.uint32)[:, None]).sum(1, dtype=jnp.uint32)

    return jax.lax.map(compare, (first[0], columns[0]))[None]
