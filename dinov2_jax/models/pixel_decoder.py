"""The pixel decoder of Mask2Former: maps of four scales -> memories and features of every pixel.

Source: Cheng et al. 2022 (arXiv 2112.01527), with deformable attention over three scales.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.models.adapter import as_cells, as_maps
from dinov2_jax.models.deformable import DeformableAttention, Size, grid_centres, linear
from dinov2_jax.models.depth import conv
from dinov2_jax.models.maps import resize

SCALES = 3  # that exchange features
EPSILON = 1e-5  # of the norms behind the adapter


def sine_positions(size: Size, width: int) -> np.ndarray:
    """Positions of a grid, fp32 [h, w, width]: the first half of the features tells y, then x."""
    half = width // 2
    divisors = 10000.0 ** (2 * (np.arange(half) // 2) / half)
    parts = []
    for axis, side in enumerate(size):
        angle = np.arange(1, side + 1)[:, None] / (side + 1e-6) * 2 * math.pi / divisors
        even = np.arange(half) % 2 == 0
        part = np.where(even, np.sin(angle), np.cos(angle))
        shape = (side, 1, half) if axis == 0 else (1, side, half)
        parts.append(np.broadcast_to(part.reshape(shape), (*size, half)))
    return np.concatenate(parts, axis=-1).astype(np.float32)


def layer_norm(name: str) -> nn.LayerNorm:
    """A LayerNorm with torch's usual epsilon."""
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, name=name)


class ConvNorm(nn.Module):
    """A convolution and a group norm."""

    features: int
    groups: int
    side: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        x = conv(self.features, self.side, "conv", bias=self.bias)(x)
        norm = nn.GroupNorm(self.groups, epsilon=EPSILON, use_fast_variance=False, name="gn")
        return norm(x)


class EncoderLayer(nn.Module):
    """Deformable attention over all scales, then a feed-forward network; norms come last."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, cells: Array, positions: Array, sizes: Sequence[Size]) -> Array:
        """[B, M, D] -> [B, M, D]; `positions` [M, D] are added to the queries alone."""
        attention = DeformableAttention(self.heads, name="attentions_0")
        cells += attention(cells + positions, grid_centres(sizes), cells, sizes)
        cells = layer_norm("norms_0")(cells)
        hidden = nn.relu(linear(self.hidden, "fc1")(cells))
        return layer_norm("norms_1")(cells + linear(cells.shape[-1], "fc2")(hidden))


class PixelDecoder(nn.Module):
    """Maps at 1/4 to 1/32 -> memories at 1/32, 1/16, 1/8, and features at 1/4.

    Attributes:
      width: D.
      layers, heads, hidden: of the encoder.
      groups: of the group norms.
    """

    width: int
    layers: int = 6
    heads: int = 32
    hidden: int = 6144
    groups: int = 32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[list[Array], Array]:
        """Maps [B, h, w, C], the largest first -> memories, the smallest first, and features."""
        first, *others = maps
        given = [
            ConvNorm(self.width, self.groups, bias=True, name=f"input_convs_{i}")(x)
            for i, x in enumerate(reversed(others))
        ]
        sizes = [(x.shape[1], x.shape[2]) for x in given]
        init = nn.initializers.normal(1.0)
        levels = self.param("level_encoding", init, (SCALES, self.width))
        positions = [sine_positions(s, self.width).reshape(-1, self.width) for s in sizes]
        positions = jnp.concatenate([p + levels[i] for i, p in enumerate(positions)])
        cells = as_cells(given)
        for i in range(self.layers):
            layer = EncoderLayer(self.heads, self.hidden, name=f"encoder_layers_{i}")
            cells = layer(cells, positions, sizes)
        memories = as_maps(cells, sizes)
        x = ConvNorm(self.width, self.groups, name="lateral_convs_0")(first)
        x += resize(memories[-1], x.shape[1:3])
        x = nn.relu(ConvNorm(self.width, self.groups, side=3, name="output_convs_0")(x))
        return memories, conv(self.width, 1, "mask_feature")(x)
