"""First centroids: k-means++ with local trials (Arthur and Vassilvitskii 2007), on a sample.

For many centroids it runs on two levels, because one level compares every row with every centroid:
a few coarse clusters first, then within each its share of the centroids.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.curation.blocks import Blocks, CurationError
from dinov2_jax.curation.lloyd import step
from dinov2_jax.ops.seeds import seed_key

ONE_LEVEL = 256  # centroids up to which one level is quick
_COARSE_STEPS = 4


def init_centroids(
    rows: np.ndarray | Blocks, k: int, seed: int, *, rows_per_centroid: int = 32
) -> np.ndarray:
    """Chooses k of the rows, far from each other: fp32 [k, D].

    Each further row is the best of 2 + ln k candidates, drawn by their squared distance to the
    nearest chosen row. The choice depends on rows and seed only, not on devices or processes.

    Args:
      rows: [n, D], see `Blocks`.
      rows_per_centroid: the size of the sample, at least 8,192 rows in all.

    Raises:
      CurationError: k is not between 1 and the number of rows; or see `Blocks`.
    """
    blocks = rows if isinstance(rows, Blocks) else Blocks(rows)
    if not 1 <= k <= blocks.size:
        raise CurationError(
            f"k={k} clusters of {blocks.size} rows; use 1 to the number of rows, best below rows/39"
        )
    sample = sample_rows(blocks, max(rows_per_centroid * k, 8192), seed)
    if k <= ONE_LEVEL:
        return sample[choose(sample, k, seed)]
    return sample[_by_cells(sample, k, seed)]


def sample_rows(blocks: Blocks, most: int, seed: int) -> np.ndarray:
    """At most so many rows of all processes in order, fp32: one of each of as many equal parts."""
    n = min(most, blocks.size)
    edges = np.arange(n + 1) * blocks.size // n
    drawn = np.random.Generator(np.random.Philox(seed)).random(n)
    rows = edges[:-1] + (drawn * np.diff(edges)).astype(np.int64)
    own = rows[(rows >= blocks.first) & (rows < blocks.first + len(blocks.rows))] - blocks.first
    if len(own) == n:
        return np.asarray(blocks.rows[own], np.float32)
    mine = np.zeros((n, blocks.width), np.float32)
    start = int(np.searchsorted(rows, blocks.first))
    mine[start : start + len(own)] = blocks.rows[own]
    return blocks.of_processes(mine).sum(axis=0)  # every row is of one process


def _by_cells(sample: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Rows of the sample: coarse clusters, and in each a share of k by its distances."""
    coarse = sample[choose(sample, math.isqrt(k), seed)]
    with jax.sharding.set_mesh(_no_mesh()):  # a sample is the same on every process
        blocks = Blocks(sample)
        for _ in range(_COARSE_STEPS):
            coarse = step(blocks, coarse).centroids
        found = step(blocks, coarse)
    spread = np.bincount(found.label, found.distance, minlength=len(coarse))
    shares = _shares(spread, found.counts, k)
    order = np.argsort(found.label, kind="stable")
    cells = np.split(order, np.cumsum(found.counts)[:-1])
    chosen = [
        cell[choose(sample[cell], share, seed + number)]
        for number, (cell, share) in enumerate(zip(cells, shares.tolist(), strict=True), 1)
        if share
    ]
    return np.concatenate(chosen)


def _no_mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((1,), ("one",), devices=jax.local_devices()[:1])


def _shares(spread: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """Whole shares of k in proportion to `spread`: at most `counts`, at least 1 where rows are."""
    least = (counts > 0).astype(np.int64)
    weight = spread / spread.sum() if spread.sum() else counts / counts.sum()
    shares = np.clip((weight * k).astype(np.int64), least, counts)
    # What rounding and limits left over goes where the wanted share is missed most.
    while (left := k - int(shares.sum())) != 0:
        missed = weight * k - shares
        if left > 0:
            can = np.flatnonzero(shares < counts)
            best = can[np.argsort(-missed[can], kind="stable")[:left]]
        else:
            can = np.flatnonzero(shares > least)
            best = can[np.argsort(missed[can], kind="stable")[:-left]]
        shares[best] += 1 if left > 0 else -1
    return shares


def choose(rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    """k-means++ on rows [n, D] of one device: the k chosen rows, int64."""
    n = len(rows)
    # Few shapes, so that cells of like size share a program.
    space = 1024 * 2 ** max(0, math.ceil(math.log2(n / 1024)))
    slots = 2 ** math.ceil(math.log2(k))
    padded = np.zeros((space, rows.shape[1]), np.float32)
    padded[:n] = rows
    trials = 2 + int(math.log(slots))
    chosen = _plus_plus(padded, n, k, seed_key(seed), slots=slots, trials=trials)
    return np.asarray(chosen)[:k].astype(np.int64)


@functools.partial(jax.jit, static_argnames=("slots", "trials"))
def _plus_plus(rows: Array, n: Array, k: Array, key: Array, *, slots: int, trials: int) -> Array:
    squares = jnp.sum(jnp.square(rows), axis=1)
    here = jnp.arange(len(rows)) < n
    first = jax.random.randint(jax.random.fold_in(key, 0), (), 0, n)

    def distances(candidates: Array) -> Array:
        """[n, trials], 0 for padding and for the candidate itself."""
        products = jnp.matmul(rows, rows[candidates].T, precision="highest")
        apart = jnp.maximum(squares[:, None] + squares[candidates] - 2 * products, 0)
        itself = jnp.arange(len(rows))[:, None] == candidates
        return jnp.where(here[:, None] & ~itself, apart, 0)

    def add(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, nearest = state
        sums = jnp.cumsum(nearest)
        drawn = jax.random.uniform(jax.random.fold_in(key, number), (trials,)) * sums[-1]
        candidates = jnp.minimum(jnp.searchsorted(sums, drawn, side="right"), n - 1)
        left = jnp.minimum(nearest[:, None], distances(candidates))
        best = left.sum(axis=0).argmin()
        return chosen.at[number].set(candidates[best]), left[:, best]

    chosen = jnp.zeros(slots, jnp.int32).at[0].set(first)
    nearest = distances(first[None])[:, 0]
    return jax.lax.fori_loop(1, k, add, (chosen, nearest))[0]
