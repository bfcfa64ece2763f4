"""The projection head (FB dinov2/layers/dino_head.py)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.models.layers import linear


def l2_normalize(x: Array, axis: int = -1, eps: float = 1e-12) -> Array:
    """x / max(|x|, eps), in fp32."""
    x = x.astype(jnp.float32)
    # The norm is taken of a safe value where x is 0: its gradient there would be NaN.
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))


class WeightNormLinear(nn.Module):
    """Linear without bias whose columns are g * v / |v|.

    The gain g is trained, decayed and averaged like any weight (reference-facts 3: it is not fixed
    to 1). `weight_v` keeps torch's default draw U(+-1 / sqrt(in_dim)), g starts at 1.
    """

    out_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., in_dim] -> [..., K], fp32."""
        bound = x.shape[-1] ** -0.5

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        v = self.param("weight_v", draw, (x.shape[-1], self.out_dim))
        g = self.param("weight_g", nn.initializers.ones, (self.out_dim,))
        kernel = l2_normalize(v, axis=0) * g
        # Logits stay in fp32: rounded to bf16 and divided by 0.04 they would be off by 0.05.
        return jnp.einsum(
            "...i,ik->...k",
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )


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
    def __call__(self, x: Array) -> Array:
        """Features [..., D] -> logits [..., K], bounded by the gains."""
        for i in range(self.layers):
            last = i == self.layers - 1
            width = self.bottleneck_dim if last else self.hidden_dim
            # The names are the reference's positions in its nn.Sequential: mlp.0, mlp.2, mlp.4.
            x = linear(width, True, self.dtype, f"mlp_{2 * i}")(x)
            x = x if last else jax.nn.gelu(x, approximate=False)
        return WeightNormLinear(self.prototypes, self.dtype, name="last_layer")(l2_normalize(x))
