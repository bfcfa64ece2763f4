"""The projection head (FB dinov2/layers/dino_head.py)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.models.layers import linear


def l2_normalize(x: Array, axis: int = -1, eps: float = 1e-12) -> Array:
    """x / max(|x|, eps), in fp32."""
    x = x.astype(jnp.float32)
    # The norm is taken of a safe value where x is 0: its gradient there would be NaN.
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))


@struct.dataclass
class Scores:
    """Logits [..., K] that are not written out: features [..., d] times kernel [d, K].

    Attributes:
      features: L2-normalised outputs of a head's bottleneck, in the compute dtype.
      kernel: weight-normalised prototypes, in the compute dtype.
      block: prototypes that are computed at a time; divides K.
    """

    features: Array
    kernel: Array
    block: int = struct.field(pytree_node=False)


class WeightNormLinear(nn.Module):
    """Linear without bias whose columns are g * v / |v|.

    The gain g is trained, decayed and averaged like any weight (reference-facts 3: it is not fixed
    to 1). `weight_v` keeps torch's default draw U(+-1 / sqrt(in_dim)), g starts at 1.
    """

    out_dim: int
    block: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array | Scores:
        """[..., in_dim] -> [..., K], fp32; with a block size both factors of it."""
        bound = x.shape[-1] ** -0.5

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        v = self.param("weight_v", draw, (x.shape[-1], self.out_dim))
        g = self.param("weight_g", nn.initializers.ones, (self.out_dim,))
        x, kernel = x.astype(self.dtype), (l2_normalize(v, axis=0) * g).astype(self.dtype)
        if self.block:
            return Scores(x, kernel, self.block)
        # Logits stay in fp32: rounded to bf16 and divided by 0.04 they would be off by 0.05.
        return jnp.einsum("...i,ik->...k", x, kernel, preferred_element_type=jnp.float32)


class DINOHead(nn.Module):
    """MLP to a bottleneck, L2 normalisation, weight-normalised prototypes.

    Attributes:
      prototypes: K.
      hidden_dim, bottleneck_dim: widths.
      layers: linear layers of the MLP; 1 is a single projection to the bottleneck.
      prototype_block: 0 gives logits; otherwise `Scores`, for losses that never write them out.
    """

    prototypes: int
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    layers: int = 3
    prototype_block: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array | Scores:
        """Features [..., D] -> logits [..., K], bounded by the gains."""
        for i in range(self.layers):
            last = i == self.layers - 1
            width = self.bottleneck_dim if last else self.hidden_dim
            # The names are the reference's positions in its nn.Sequential: mlp.0, mlp.2, mlp.4.
            x = linear(width, True, self.dtype, f"mlp_{2 * i}")(x)
            x = x if last else jax.nn.gelu(x, approximate=False)
        x = l2_normalize(x)
        return WeightNormLinear(
            self.prototypes, self.prototype_block, self.dtype, name="last_layer"
        )(x)
