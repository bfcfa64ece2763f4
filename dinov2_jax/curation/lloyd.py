"""One step of k-means: the nearest centroid of every row, and the mean of every cluster.

The result has the same bits on any number of devices and processes, because nothing depends on an
order: products have one shape, equal scores go to the lowest centroid, and sums are of integers.
"""

import functools
import heapq
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P

from dinov2_jax.curation.blocks import MOST_ROWS, Block, Blocks, CurationError

Empty = Literal["keep", "split"]
_GREATEST = 2**31 // MOST_ROWS - 1  # of a value as an integer: 16 bits and a sign


class Step(NamedTuple):
    """A pass over the rows.

    Attributes:
      centroids: fp32 [k, D], the means of the clusters.
      counts: int64 [k], rows of each cluster.
      label: int32 [n], the nearest old centroid of each row of this process.
      distance: fp32 [n], its squared distance.
      objective: the sum of the distances of all processes.
    """

    centroids: np.ndarray
    counts: np.ndarray
    label: np.ndarray
    distance: np.ndarray
    objective: float


class _Sums(NamedTuple):
    """Each device's rows by cluster [k], and sums [k, D] as high * 2^16 + low, all int32."""

    count: Array
    high: Array
    low: Array


class _Centroids(NamedTuple):
    """Centroids in tiles [t, T, D], half of their squared norms [t, T]; padding has inf there."""

    tiles: Array
    half: Array


def assign(
    rows: np.ndarray | Blocks, centroids: np.ndarray, *, dtype: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid (L2) of every row.

    Args:
      rows: [n, D], see `Blocks`.
      centroids: [k, D]. Among equally near ones the lowest wins.
      dtype: of products; "float32" on a CPU by default, else "bfloat16". Sums are fp32.

    Returns:
      labels int32 [n], and squared distances fp32 [n]: near 0 exact to 1e-6 of the squared norm.

    Raises:
      CurationError: see `Blocks`; or the centroids are of another width or not finite.
    """
    blocks = rows if isinstance(rows, Blocks) else Blocks(rows)
    label, distance, _ = _sweep(blocks, centroids, 0, dtype)
    return label, distance


def step(
    rows: np.ndarray | Blocks,
    centroids: np.ndarray,
    *,
    empty: Empty = "keep",
    dtype: str | None = None,
) -> Step:
    """Assigns the rows to centroids [k, D], and takes the mean of every cluster.

    A row enters its mean as integers of 16 bits and a sign, scaled by the greatest absolute value
    of all rows: the mean of n rows is exact to 2^-17 of that value, and less by about sqrt(n).

    Args:
      empty: what becomes of a cluster without rows. "keep" leaves its centroid where it is, as the
        published method does. "split" moves it beside the centroid of the largest cluster, which
        is then taken to have half of its rows, and so on.
    """
    blocks = rows if isinstance(rows, Blocks) else Blocks(rows)
    most = max(blocks.greatest, float(np.finfo(np.float32).tiny))
    scale = 2.0 ** min(math.floor(math.log2(_GREATEST / most)), 126)
    label, distance, sums = _sweep(blocks, centroids, scale, dtype)
    assert sums is not None
    counts, high, low = (np.asarray(part).astype(np.int64) for part in sums)
    means = ((high << 16) + low) / (np.maximum(counts, 1)[:, None] * scale)
    kept = np.where(counts[:, None] > 0, means, centroids).astype(np.float32)
    if empty == "split":
        kept = split_largest(kept, counts)
    return Step(kept, counts, label, distance, _total(blocks, distance))


def split_largest(centroids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Moves the centroid of each empty cluster beside that of the largest one, both by 1/1024."""
    centroids, counts = centroids.copy(), counts.copy()
    largest = [(-count, row) for row, count in enumerate(counts.tolist()) if count > 1]
    heapq.heapify(largest)
    shift = np.where(np.arange(centroids.shape[1]) % 2, -1, 1).astype(np.float32) / 1024
    for row in np.flatnonzero(counts == 0).tolist():
        if not largest:
            break
        count, donor = heapq.heappop(largest)
        centroids[row] = centroids[donor] * (1 + shift)
        centroids[donor] *= 1 - shift
        for half, owner in ((-count // 2, row), (-count - -count // 2, donor)):
            if half > 1:
                heapq.heappush(largest, (-half, owner))
    return centroids


def _total(blocks: Blocks, distance: np.ndarray) -> float:
    """The sum of all distances, as integers: the order of rows and processes does not enter."""
    most = max(4.0 * blocks.width * blocks.greatest**2, float(np.finfo(np.float32).tiny))
    scale = 2.0 ** math.floor(62 - math.log2(most) - math.log2(blocks.size))
    total = 0
    for start in range(0, len(distance), 2**20):
        part = distance[start : start + 2**20].astype(np.float64)
        total += int(np.rint(part * scale).astype(np.int64).sum())
    words = blocks.of_processes(np.array([total], np.int64).view(np.int32))  # JAX has no int64
    return sum(int(own.view(np.int64)[0]) for own in np.ascontiguousarray(words)) / scale


def _sweep(
    blocks: Blocks, centroids: np.ndarray, scale: float, dtype: str | None
) -> tuple[np.ndarray, np.ndarray, _Sums | None]:
    """Labels and distances, and the sums of all devices if `scale` is not 0."""
    centroids = np.asarray(centroids, np.float32)
    k, width = centroids.shape
    if width != blocks.width:
        raise CurationError(f"the centroids have {width} values each, the rows {blocks.width}")
    if not np.isfinite(centroids).all():
        raise CurationError("a centroid is not finite; start again without these centroids")
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    tiled = _tiles(blocks.copy(centroids), blocks.tile[1], dtype)
    label = np.empty(len(blocks.rows), np.int32)
    distance = np.empty(len(blocks.rows), np.float32)
    sums, waiting = None, []
    if scale:
        sums = _Sums(*(blocks.split(x) for x in _zeros(blocks, k, width)))

    def receive(here: slice, found: tuple[Array, Array]) -> None:
        for part, x in zip(found, (label, distance), strict=True):
            x[here] = blocks.own(part).reshape(-1)[: here.stop - here.start]

    for here, block in blocks:
        *found, sums = _pass(
            block, tiled, sums, np.float32(scale), k=k, inner=blocks.tile[0], mesh=blocks.mesh
        )
        waiting.append((here, found))
        if len(waiting) > 2:  # the device works on two blocks while the host reads the next
            receive(*waiting.pop(0))
    for left in waiting:
        receive(*left)
    return label, distance, None if sums is None else _add_devices(sums, mesh=blocks.mesh)


def _zeros(blocks: Blocks, k: int, width: int) -> list[np.ndarray]:
    shards = 1 if blocks.mesh is None else len(blocks.mesh.local_devices)
    return [np.zeros((shards, *shape), np.int32) for shape in ((k,), (k, width), (k, width))]


@functools.partial(jax.jit, static_argnames=("most", "dtype"))
def _tiles(centroids: Array, most: int, dtype: str) -> _Centroids:
    k, width = centroids.shape
    count = -(-k // most)
    size = -(-k // (count * 64)) * 64  # tiles of like size waste least; 1,000 is slower than 1,024
    centroids = centroids.astype(dtype)
    half = jnp.sum(jnp.square(centroids.astype(jnp.float32)), axis=1) / 2
    more = count * size - k
    tiles = jnp.pad(centroids, [(0, more), (0, 0)]).reshape(count, size, width)
    return _Centroids(tiles, jnp.pad(half, (0, more), constant_values=jnp.inf).reshape(count, size))


@functools.partial(jax.jit, static_argnames=("k", "inner", "mesh"), donate_argnames="sums")
def _pass(
    block: Block, centroids: _Centroids, sums: _Sums | None, scale: Array, *, k: int, inner: int,
    mesh: jax.sharding.Mesh | None,
) -> tuple[Array, Array, _Sums | None]:  # fmt: skip
    """Labels and distances [shards, n] of a block, and the sums with its rows."""
    local = functools.partial(_pass_of_device, k=k, inner=inner)
    if mesh is None:
        return local(block, centroids, sums, scale)
    split = P(mesh.axis_names)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(split, P(), split, P()), out_specs=split, check_vma=False
    )(block, centroids, sums, scale)


def _pass_of_device(
    block: Block, centroids: _Centroids, sums: _Sums | None, scale: Array, *, k: int, inner: int
) -> tuple[Array, Array, _Sums | None]:
    rows, count = block.rows[0], block.count[0]
    n, width = rows.shape
    best = functools.partial(_nearest, centroids=centroids)
    label, distance = jax.lax.map(best, rows.reshape(-1, inner, width))
    label, distance = label.reshape(n), distance.reshape(n)
    if sums is not None:
        kept = jnp.where(jnp.arange(n) < count, label, k)  # padding belongs to no cluster
        whole = jnp.rint(rows.astype(jnp.float32) * scale).astype(jnp.int32)
        add = functools.partial(jax.ops.segment_sum, segment_ids=kept, num_segments=k)
        part = add(whole)
        low = sums.low[0] + (part & 0xFFFF)
        carried = sums.high[0] + (part >> 16) + (low >> 16)
        counted = sums.count[0] + add(jnp.ones(n, jnp.int32))
        sums = _Sums(counted[None], carried[None], (low & 0xFFFF)[None])
    return label[None], distance[None], sums


def _nearest(rows: Array, centroids: _Centroids) -> tuple[Array, Array]:
    """Labels and squared distances of rows [b, D], over the tiles of centroids."""
    rows = rows.astype(centroids.tiles.dtype)

    def compare(best: tuple[Array, Array], tile: tuple[Array, Array, Array]):
        centroids, half, first = tile
        products = jnp.matmul(
            rows, centroids.T, precision="highest", preferred_element_type=jnp.float32
        )
        scores = products - half
        most = scores.max(axis=1)
        # The lowest column that reaches it. XLA's argmax takes 4 times as long on a CPU.
        columns = jnp.arange(len(half), dtype=jnp.int32)
        at = jnp.where(scores == most[:, None], columns, len(half)).min(axis=1)
        better = most > best[0]
        return tuple(
            jnp.where(better, *pair) for pair in ((most, best[0]), (first + at, best[1]))
        ), ()

    count, size, _ = centroids.tiles.shape
    start = jnp.full(len(rows), -jnp.inf), jnp.zeros(len(rows), jnp.int32)
    firsts = jnp.arange(count, dtype=jnp.int32) * size
    (score, label), _ = jax.lax.scan(compare, start, (*centroids, firsts))
    squares = jnp.sum(jnp.square(rows.astype(jnp.float32)), axis=1)
    return label, jnp.maximum(squares - 2 * score, 0)


@functools.partial(jax.jit, static_argnames="mesh")
def _add_devices(sums: _Sums, *, mesh: jax.sharding.Mesh | None) -> _Sums:
    """Sums of all devices, whole on each."""
    if mesh is None:
        return _Sums(*(part[0] for part in sums))

    def add(sums: _Sums) -> _Sums:
        return _Sums(*(jax.lax.psum(part[0], mesh.axis_names) for part in sums))

    split = P(mesh.axis_names)
    return jax.shard_map(add, mesh=mesh, in_specs=split, out_specs=P(), check_vma=False)(sums)
