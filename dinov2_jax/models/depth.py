"""Depth heads: "linear" (bins) and DPT.

Source: FB dinov2/hub/depth/decode_heads; paper section 7.4. The deepest block comes last in every
list of levels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.models.maps import Level, resize
from dinov2_jax.models.patches import uniform_fan_in
from dinov2_jax.ops.gelu import gelu

BINS = 256
PLACEMENTS = ("uniform", "log")
NORMS = ("linear", "softmax", "sigmoid")
_SCALE = 4  # of the linear head's map to the grid of patches
_KAIMING: Any = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def bin_depths(low: float, high: float, bins: int = BINS, placement: str = "uniform") -> np.ndarray:
    """Depths of the bins in metres, fp32 [bins]: the first is `low`, the last `high`.

    Args:
      placement: "uniform" (the reference's UD), or "log": even steps of the logarithm (its SID).
    """
    # DINOv2: the reference's SID takes `low` and `high` for powers of ten, so that 80 m overflows.
    # No released head uses it.
    space = np.geomspace if placement == "log" else np.linspace
    return space(low, high, bins).astype(np.float32)


class LinearDepth(nn.Module):
    """A linear classifier of depth bins; depth is the mean of the bins.

    Attributes:
      low, high: depth of the first and of the last bin, metres.
      placement: of the bins, one of PLACEMENTS.
      norm: how logits become shares, one of NORMS; "linear" is relu(z) + 0.1 over its sum.
    """

    low: float
    high: float
    bins: int = BINS
    placement: str = "uniform"
    norm: str = "linear"

    @nn.compact
    def __call__(self, levels: Sequence[Level]) -> Array:
        """Depth in metres [B, 4h, 4w]; levels of one block or of four, before the final norm."""
        # Per level the patches come first, then the cls token; classifiers have it the other way.
        x = jnp.concatenate([_with_cls(level) for level in levels], axis=-1)
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.bins))
        bias = self.param("bias", init, (self.bins,))
        logits = jnp.einsum("bhwc,ck->bhwk", x, kernel, precision="highest") + bias
        # The reference resizes the features first. A linear map commutes with that, and logits are
        # fewer.
        logits = resize(logits, (_SCALE * x.shape[1], _SCALE * x.shape[2]))
        depths = bin_depths(self.low, self.high, self.bins, self.placement)
        return jnp.einsum("bhwk,k->bhw", _shares(logits, self.norm), depths, precision="highest")


def _with_cls(level: Level) -> Array:
    """[B, h, w, 2D]."""
    cls = jnp.broadcast_to(level.cls[:, None, None], level.patches.shape)
    return jnp.concatenate([level.patches, cls], axis=-1)


def _shares(logits: Array, norm: str) -> Array:
    if norm == "softmax":
        return jax.nn.softmax(logits)
    weights = jax.nn.relu(logits) + 0.1 if norm == "linear" else jax.nn.sigmoid(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


def conv(
    features: int, side: int, name: str, bias: bool = True, init: Any = _KAIMING, **options: Any
) -> nn.Conv:
    """A convolution that keeps the size of the map; `init` is that of mmcv's ConvModule."""
    return nn.Conv(
        features, (side, side), padding=side // 2, use_bias=bias, kernel_init=init, name=name,
        precision="highest", **options,
    )  # fmt: skip


def torch_conv(x: Array, features: int, side: int, name: str, stride: int = 1) -> Array:
    """A convolution of x that starts as torch's does."""
    init = uniform_fan_in(x.shape[-1] * side**2)
    layer = conv(features, side, name, init=init, bias_init=init, strides=(stride, stride))
    return layer(x)


class Upsample(nn.Module):
    """A transposed convolution whose stride is its kernel: each value becomes a square."""

    side: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, side h, side w, C]."""
        batch, rows, cols, channels = x.shape
        shape = (channels, channels, self.side, self.side)  # in, out, rows, columns: torch's order
        init = uniform_fan_in(channels * self.side**2)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", init, (channels,))
        squares = jnp.einsum("bhwc,cdij->bhiwjd", x, kernel, precision="highest")
        return squares.reshape(batch, rows * self.side, cols * self.side, channels) + bias


class Readout(nn.Module):
    """Joins the cls token to every patch."""

    @nn.compact
    def __call__(self, level: Level) -> Array:
        """[B, h, w, D]."""
        both, dim = _with_cls(level), level.cls.shape[-1]
        init = uniform_fan_in(2 * dim)
        kernel = self.param("kernel", init, (2 * dim, dim))
        bias = self.param("bias", init, (dim,))
        return gelu(jnp.einsum("bhwc,cd->bhwd", both, kernel, precision="highest") + bias)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))); the sum takes x before its relu."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = conv(x.shape[-1], 3, "conv1", bias=False)(nn.relu(x))
        return x + conv(x.shape[-1], 3, "conv2", bias=False)(nn.relu(y))


class Fusion(nn.Module):
    """Adds a level to the running map and doubles its size."""

    @nn.compact
    def __call__(self, x: Array, level: Array | None = None) -> Array:
        """[B, h, w, C] -> [B, 2h, 2w, C]; a level of another size is resized to x."""
        if level is not None:
            level = resize(level, x.shape[1:3])
            x = x + ResidualUnit(name="res_conv_unit1")(level)
        x = ResidualUnit(name="res_conv_unit2")(x)
        # The 1x1 convolution commutes with the resizing that comes before it in the reference, and
        # a quarter of the values costs a quarter.
        x = conv(x.shape[-1], 1, "project")(x)
        return resize(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)


class DPT(nn.Module):
    """Dense prediction transformer (Ranftl et al. 2021), with the readout "project".

    Attributes:
      low: metres, added to the output.
      channels: C of the running map.
      widths: of the four levels; None: D/8, D/4, D/2, D.
    """

    low: float
    channels: int = 256
    widths: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, levels: Sequence[Level]) -> Array:
        """Depth in metres, at least `low`, [B, 32 ceil(h/2), 32 ceil(w/2)]; four levels."""
        maps = [
            conv(self.channels, 3, f"convs_{i}", bias=False)(x)
            for i, x in enumerate(self.reassemble(levels))
        ]
        x = Fusion(name="fusion_blocks_0")(maps[3])
        for i in (1, 2, 3):
            x = Fusion(name=f"fusion_blocks_{i}")(x, maps[3 - i])
        x = nn.relu(conv(self.channels, 3, "project")(x))
        return self.read_off(x)

    @nn.compact
    def reassemble(self, levels: Sequence[Level]) -> list[Array]:
        """Maps of 4h, 2h, h and ceil(h/2) rows, of `widths` channels."""
        dim = levels[0].cls.shape[-1]
        widths = self.widths or (dim // 8, dim // 4, dim // 2, dim)
        maps = [Readout(name=f"readout_projects_{i}")(level) for i, level in enumerate(levels)]
        maps = [conv(widths[i], 1, f"projects_{i}")(x) for i, x in enumerate(maps)]
        return [
            Upsample(4, name="resize_layers_0")(maps[0]),
            Upsample(2, name="resize_layers_1")(maps[1]),
            maps[2],
            torch_conv(maps[3], widths[3], 3, "resize_layers_3", stride=2),
        ]

    @nn.compact
    def read_off(self, x: Array) -> Array:
        """The running map [B, h, w, C] -> depth [B, 2h, 2w]."""
        x = torch_conv(x, self.channels // 2, 3, "head_0")
        x = resize(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
        x = nn.relu(torch_conv(x, 32, 3, "head_2"))
        return nn.relu(torch_conv(x, 1, 1, "head_4"))[..., 0] + self.low


def to_image_size(depth: Array, low: float, high: float, size: tuple[int, int]) -> Array:
    """A head's depth [B, h, w], clamped to [low, high] and then resized to the image [B, H, W]."""
    return resize(jnp.clip(depth, low, high)[..., None], size)[..., 0]
