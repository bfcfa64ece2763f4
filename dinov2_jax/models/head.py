"""The projection head (FB dinov2/layers/dino_head.py)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.models.layers import Linear
from dinov2_jax.models.patches import uniform_fan_in
from dinov2_jax.ops.gelu import gelu
from dinov2_jax.parallel.constraints import constrain_batch, constrain_prototypes

EPS = 1e-12  # lower bound of a norm in a division


def inverse_norm(x: Array) -> Array:
    """1 / max(|x|, EPS) along the last axis, [...]."""
    # The bound is applied before the root: the gradient of a root at 0 is NaN.
    return jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1), EPS**2))


def l2_normalize(x: Array) -> Array:
    """x / max(|x|, EPS) along the last axis, in fp32."""
    x = x.astype(jnp.float32)
    return x * inverse_norm(x)[..., None]


class WeightNormLinear(nn.Module):
    """The weights of a linear layer without bias, g * v / |v|, one row a prototype.

    The gain g is trained, decayed and averaged like any weight (it is not fixed to 1). `weight_v`
    [K, in_dim] keeps torch's default draw U(+-1 / sqrt(in_dim)), g starts at 1. A prototype is a
    row, because XLA's CPU backend sums rows much faster than columns.
    """

    out_dim: int

    @nn.compact
    def __call__(self, in_dim: int) -> Array:
        """The prototypes [K, in_dim], fp32."""
        v = self.param("weight_v", uniform_fan_in(in_dim), (self.out_dim, in_dim))
        g = self.param("weight_g", nn.initializers.ones, (self.out_dim,))
        return v * (g * inverse_norm(v))[:, None]


class DINOHead(nn.Module):
    """MLP to a bottleneck, L2 normalisation, weight-normalised prototypes.

    Attributes:
      prototypes: K.
      hidden_dim, bottleneck_dim: widths.
      layers: linear layers of the MLP; 1 is a single projection to the bottleneck.
    """

    prototypes: int
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    layers: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, Array]:
        """The two factors of the logits, which are their inner products (see ssl/scores.py).

        Features [..., D] -> unit vectors [..., d] and prototypes [K, d], in the compute dtype.
        """
        x = features
        for i in range(self.layers):
            last = i == self.layers - 1
            width = self.bottleneck_dim if last else self.hidden_dim
            # The names are the positions in the reference's nn.Sequential: mlp.0, mlp.2, mlp.4.
            # Like the reference, devices sum gradients of heads in fp32, those of the backbone in
            # the compute dtype.
            x = Linear(width, True, self.dtype, fp32_gradients=True, name=f"mlp_{2 * i}")(x)
            x = x if last else gelu(x)
        prototypes = WeightNormLinear(self.prototypes, name="last_layer")(self.bottleneck_dim)
        unit = l2_normalize(x).astype(self.dtype)
        return constrain_batch(unit), constrain_prototypes(prototypes.astype(self.dtype))
