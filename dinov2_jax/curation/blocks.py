"""Many rows in blocks of one shape: on the devices at once, or read again at every pass.

Under a mesh (`jax.set_mesh`) each device works on its own part of a block. With several processes,
each passes its own rows, and row numbers run through the processes, as in `features.search`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.errors import UserError

# Rows and centroids that one product takes. Their similarities stay in the cache of a CPU core
# (4 MB; 1.4 times faster than 4096 x 10000), and nearly in that of an H200 (32 MB).
_CPU_TILE = (1024, 1024)
_TILE = (2048, 4096)
# Rows whose sums fit int32: 32768 * 65535 < 2^31, see `lloyd`.
MOST_ROWS = 32768


class CurationError(UserError):
    """Rows or settings that cannot be curated; the message is one sentence."""


class Block(NamedTuple):
    """Rows [shards, n, D] and how many of each shard are rows, int32 [shards]; the rest is 0."""

    rows: Array
    count: Array


class Blocks:
    """Rows of this process in blocks, ready for many passes.

    Args:
      rows: [n, D] of a float type; a memory map is read block by block.
      resident_bytes: how much may stay on each device; more is read again at every pass. The
        default is half of the device's memory, or 2 GiB for a CPU.

    Attributes:
      rows: this process's rows as given.
      size: rows of all processes. `first` is the number of this process's first row.
      greatest: the greatest absolute value of all processes.
      tile: rows and centroids of one product.
      mesh: the mesh if it has several devices.

    Raises:
      CurationError: there are no rows, or a value is not finite.
    """

    def __init__(self, rows: np.ndarray, *, resident_bytes: int | None = None) -> None:
        if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
            raise CurationError(
                f"the rows are {rows.dtype}{list(rows.shape)}; give features [rows, width] of a "
                "float type"
            )
        self.rows, self.width = rows, rows.shape[1]
        mesh = jax.sharding.get_mesh()
        self.mesh: Mesh | None = None if mesh.empty or mesh.size == 1 else mesh
        self._shards = 1 if self.mesh is None else len(self.mesh.local_devices)
        counts = self.of_processes(np.array([len(rows)], np.int32)).ravel()
        self.size, self.first = int(counts.sum()), int(counts[: jax.process_index()].sum())
        if not self.size:
            raise CurationError("there are 0 rows to curate; check the folder of features")
        greatest, bad = _greatest(rows)
        self.greatest = float(self.of_processes(np.float32(greatest)).max())
        if not math.isfinite(self.greatest):  # every process stops
            where = "a row of another process" if bad is None else f"row {self.first + bad}"
            raise CurationError(
                f"{where} is not finite, as of a picture that could not be read; repair or leave "
                "out such pictures"
            )
        self.tile = _CPU_TILE if jax.default_backend() == "cpu" else _TILE
        share = -(-int(counts.max()) // self._shards)
        # Shapes of products depend on nothing but the rows of all processes, so that every number
        # of devices computes the same bits.
        inner = min(self.tile[0], max(128, 1 << (self.size - 1).bit_length()))
        self.tile = inner, self.tile[1]
        self._length = inner * _products(-(-share // inner), MOST_ROWS // inner)
        self._steps = -(-share // self._length)
        held = self._steps * self._length * self.width * rows.dtype.itemsize
        self._resident = held <= _room(resident_bytes)
        self._held: list[Block] = []

    def of_processes(self, x: np.ndarray) -> np.ndarray:
        """An array of every process, [processes, ...]."""
        if self.mesh is None or jax.process_count() == 1:
            return np.asarray(x)[None]
        return np.asarray(multihost_utils.process_allgather(np.asarray(x)))

    def __iter__(self) -> Iterator[tuple[slice, Block]]:
        """Yields the slice of this process's rows, and the block on the devices."""
        if self._held:
            yield from zip(self._slices(), self._held, strict=True)
            return
        held = []
        for here in self._slices():
            block = self._place(here)
            if self._resident:
                held.append(block)
            yield here, block
        self._held = held

    def _slices(self) -> list[slice]:
        step, end = self._shards * self._length, len(self.rows)
        return [slice(min(s * step, end), min((s + 1) * step, end)) for s in range(self._steps)]

    def _place(self, here: slice) -> Block:
        part = np.asarray(self.rows[here])
        space = self._shards * self._length
        if len(part) < space:
            part = np.concatenate([part, np.zeros((space - len(part), self.width), part.dtype)])
        left = here.stop - here.start - np.arange(self._shards) * self._length
        count = np.clip(left, 0, self._length).astype(np.int32)
        return Block(
            self.split(part.reshape(self._shards, self._length, self.width)), self.split(count)
        )

    def split(self, x: np.ndarray) -> Array:
        """Puts one part of the first axis on each device."""
        if self.mesh is None:
            return jnp.asarray(x)
        sharding = NamedSharding(self.mesh, P(self.mesh.axis_names))
        return jax.make_array_from_process_local_data(sharding, x)

    def copy(self, x: np.ndarray) -> Array:
        """Puts the whole of an array on each device."""
        if self.mesh is None:
            return jnp.asarray(x)
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, P()), x)

    def own(self, x: Array) -> np.ndarray:
        """This process's parts of an array that is split over the devices, along the first axis."""
        if x.is_fully_addressable:
            return np.asarray(x)
        parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _products(count: int, most: int) -> int:
    """How many of `count` products form a block, so that the last block is nearly full."""
    if count > most:
        return -(-count // -(-count // most))
    # Few shapes, because a resample has as many rows as it likes, and each shape is compiled.
    return max(1, (1 << (count.bit_length() - 1)) // 4)


def _room(resident_bytes: int | None) -> int:
    if resident_bytes is not None:
        return resident_bytes
    if jax.default_backend() == "cpu":
        return 2**31
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", 2**33) // 2


def _greatest(rows: np.ndarray, length: int = MOST_ROWS) -> tuple[float, int | None]:
    """The greatest absolute value; inf and the row at the first row that is not finite."""
    greatest = 0.0
    for start in range(0, len(rows), length):
        part = np.asarray(rows[start : start + length], np.float32)
        most = float(max(part.max(initial=0), -part.min(initial=0)))
        if not math.isfinite(most):
            return math.inf, start + int(np.isfinite(part).all(axis=1).argmin())
        greatest = max(greatest, most)
    return greatest, None
