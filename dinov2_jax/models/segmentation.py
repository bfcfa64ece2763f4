"""The segmentation head "linear" and "+ms": batch norm, then a 1x1 convolution.

Source: FB dinov2/eval/segmentation/models/decode_heads/linear_head.py; paper section 7.4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-5  # of the batch norm
MOMENTUM = 0.1  # share of a batch in the running statistics


class Statistics(NamedTuple):
    """Running statistics of the batch norm: no parameters, so they are passed in and out.

    Attributes:
      mean, var: fp32 [C].
      batches: how many were seen, int32 [].
    """

    mean: Array
    var: Array
    batches: Array


def initial_statistics(channels: int) -> Statistics:
    """Those of a batch norm that has seen nothing."""
    return Statistics(jnp.zeros(channels), jnp.ones(channels), jnp.zeros((), jnp.int32))


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last.

    Training normalises with the biased variance of the batch, and stores the unbiased one.
    """

    @nn.compact
    def __call__(
        self, x: Array, statistics: Statistics, train: bool = False
    ) -> tuple[Array, Statistics]:
        """[..., C] -> [..., C], and the statistics after this batch."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        mean, var = statistics.mean, statistics.var
        if train:
            mean, var, statistics = _of_batch(x, statistics)
        return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias, statistics


def _of_batch(x: Array, statistics: Statistics) -> tuple[Array, Array, Statistics]:
    axes, count = tuple(range(x.ndim - 1)), x[..., 0].size
    mean = x.mean(axes)
    var = jnp.square(x - mean).mean(axes)
    seen = jax.lax.stop_gradient((mean, var * (count / max(count - 1, 1))))
    old = statistics.mean, statistics.var
    new = [(1 - MOMENTUM) * before + MOMENTUM * now for before, now in zip(old, seen, strict=True)]
    return mean, var, Statistics(*new, statistics.batches + 1)


class SegmentationHead(nn.Module):
    """Logits of each patch from its features alone.

    Attributes:
      classes: K.
    """

    classes: int

    @nn.compact
    def __call__(
        self, maps: Sequence[Array], statistics: Statistics, train: bool = False
    ) -> tuple[Array, Statistics]:
        """Logits [B, h, w, K], and the statistics after this batch.

        Args:
          maps: [B, h, w, D] of one block ("linear") or of the last four ("+ms"), after the final
            norm; they are concatenated.
          statistics: of the batch norm, for all channels.
          train: normalise with the statistics of this batch.
        """
        x = jnp.concatenate(maps, axis=-1)
        x, statistics = BatchNorm(name="bn")(x, statistics, train)
        kernel = self.param("kernel", nn.initializers.normal(0.01), (x.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return jnp.einsum("bhwc,ck->bhwk", x, kernel, precision="highest") + bias, statistics
