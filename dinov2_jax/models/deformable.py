"""Multi-scale deformable attention (Zhu et al. 2021, arXiv 2010.04159).

Each query reads a few points of several maps, at places that it computes itself.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Size = tuple[int, int]  # height, width


def grid_centres(sizes: Sequence[Size]) -> np.ndarray:
    """Centres (x, y) of the cells of some grids, each as shares of its sides: fp32 [cells, 2]."""
    parts = []
    for height, width in sizes:
        y, x = np.meshgrid(
            (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
        )
        parts.append(np.stack([x, y], axis=-1).reshape(-1, 2))
    return np.concatenate(parts).astype(np.float32)


def corners(places: Array, size: Size) -> tuple[Array, Array]:
    """The four cells around each place, and their bilinear shares.

    Args:
      places: (x, y) as shares of the sides of a map, [..., 2].
      size: of the map.

    Returns:
      Numbers of cells, row by row, and shares, [..., 4]. A cell outside has the share 0.
    """
    height, width = size
    xy = places * jnp.array([width, height], jnp.float32) - 0.5
    low = jnp.floor(xy)
    upper = xy - low
    numbers, shares = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            share = jnp.abs(1 - dx - upper[..., 0]) * jnp.abs(1 - dy - upper[..., 1])
            cell = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
            numbers.append(cell.astype(jnp.int32))
            shares.append(jnp.where(inside, share, 0.0))
    return jnp.stack(numbers, axis=-1), jnp.stack(shares, axis=-1)


def sample(values: Array, sizes: Sequence[Size], places: Array, weights: Array) -> Array:
    """Weighted sums of values at places of several maps; one gather serves all maps.

    Args:
      values: [B, cells of all maps, H, d].
      sizes: of the L maps.
      places: [B, Q, H, L, P, 2], see `corners`.
      weights: [B, Q, H, L, P].

    Returns:
      [B, Q, H, d].
    """
    starts = np.cumsum([0, *(height * width for height, width in sizes)])
    numbers, shares = [], []
    for level, size in enumerate(sizes):
        cells, share = corners(places[..., level, :, :], size)
        numbers.append(cells + int(starts[level]))
        shares.append(share * weights[..., level, :, None])
    batch, queries, heads = weights.shape[:3]
    flat = (batch, queries, heads, -1)
    cells = jnp.concatenate(numbers, axis=3).reshape(flat)
    shares = jnp.concatenate(shares, axis=3).reshape(flat)

    def of_head(values: Array, cells: Array, shares: Array) -> Array:
        return jnp.einsum("qpd,qp->qd", values[cells], shares, precision="highest")

    by_head = jax.vmap(of_head, in_axes=(1, 1, 1), out_axes=1)
    return jax.vmap(by_head)(values, cells, shares)


def linear(features: int, name: str) -> nn.Dense:
    """A linear layer of the adapter or decoder, which start as Xavier says."""
    init = nn.initializers.xavier_uniform()
    return nn.Dense(features, kernel_init=init, precision="highest", name=name)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention.

    Attributes:
      heads, points: H, and P points a map.
      ratio: of the width of all heads together to that of the tokens.
    """

    heads: int
    points: int = 4
    ratio: float = 1.0

    @nn.compact
    def __call__(
        self, queries: Array, centres: Array, values: Array, sizes: Sequence[Size]
    ) -> Array:
        """[B, Q, D] -> [B, Q, D].

        Args:
          centres: of the queries, (x, y) as shares, [Q, 2].
          values: [B, cells of all maps, D].
          sizes: of the maps.
        """
        batch, count, dim = queries.shape
        split = batch, count, self.heads, len(sizes), self.points
        width = int(dim * self.ratio)
        zeros = nn.initializers.zeros
        total = math.prod(split[2:])
        offsets = nn.Dense(
            2 * total, kernel_init=zeros, bias_init=self._directions, precision="highest",
            name="sampling_offsets",
        )(queries)  # fmt: skip
        weights = nn.Dense(total, kernel_init=zeros, precision="highest", name="attention_weights")(
            queries
        )
        weights = jax.nn.softmax(weights.reshape(*split[:3], -1)).reshape(split)
        values = linear(width, "value_proj")(values).reshape(
            batch, -1, self.heads, width // self.heads
        )
        sides = jnp.array([(w, h) for h, w in sizes], jnp.float32)[:, None]
        places = centres[:, None, None, None] + offsets.reshape(*split, 2) / sides
        found = sample(values, sizes, places, weights)
        return linear(dim, "output_proj")(found.reshape(batch, count, width))

    def _directions(self, key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        """Each head begins with points in a direction of its own, further and further away."""
        angles = np.arange(self.heads) * (2 * math.pi / self.heads)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        directions /= np.abs(directions).max(axis=-1, keepdims=True)
        steps = np.arange(1, self.points + 1)[:, None]
        levels = shape[0] // (2 * self.heads * self.points)
        offsets = np.tile(directions[:, None, None] * steps, (1, levels, 1, 1))
        return jnp.asarray(offsets.reshape(-1), dtype)
