"""The projection head (FB dinov2/layers/dino_head.py)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.models.layers import gelu, linear
from dinov2_jax.parallel.constraints import constrain_batch, constrain_prototypes, constrain_scores

EPS = 1e-12  # least norm that is divided by


def inverse_norm(x: Array) -> Array:
    """1 / max(|x|, EPS) along the last axis, [...]."""
    # The root is taken of a safe value where x is 0: its gradient there would be NaN.
    return jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1), EPS**2))


def l2_normalize(x: Array) -> Array:
    """x / max(|x|, EPS) along the last axis, in fp32."""
    x = x.astype(jnp.float32)
    return x * inverse_norm(x)[..., None]


@struct.dataclass
class Scores:
    """Logits [..., K] that are not written out: features [..., d] times prototypes [K, d].

    Attributes:
      features: L2-normalised outputs of a head's bottleneck, in the compute dtype.
      prototypes: weight-normalised, in the compute dtype.
      block: prototypes that are computed at a time; divides K.
    """

    features: Array
    prototypes: Array
    block: int = struct.field(pytree_node=False)


class WeightNormLinear(nn.Module):
    """Linear without bias whose weights, one row a prototype, are g * v / |v|.

    The gain g is trained, decayed and averaged like any weight (reference-facts 3: it is not fixed
    to 1). `weight_v` [K, in_dim] keeps torch's default draw U(+-1 / sqrt(in_dim)), g starts at 1.
    One prototype lies in one piece: XLA's CPU backend sums over rows 50 times as fast as over
    columns (65,536 x 256: 2 ms and 114 ms on two cores).
    """

    out_dim: int
    block: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, sets: Sequence[Array]) -> list[Array] | list[Scores]:
        """[..., in_dim] each -> [..., K], fp32; with a block size both factors of it."""
        in_dim = sets[0].shape[-1]
        bound = in_dim**-0.5

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        v = self.param("weight_v", draw, (self.out_dim, in_dim))
        g = self.param("weight_g", nn.initializers.ones, (self.out_dim,))
        prototypes = constrain_prototypes((v * (g * inverse_norm(v))[:, None]).astype(self.dtype))
        sets = [constrain_batch(x.astype(self.dtype)) for x in sets]
        if self.block:
            return [Scores(x, prototypes, self.block) for x in sets]
        # Logits stay in fp32: rounded to bf16 and divided by 0.04 they would be off by 0.05.
        logits = [
            jnp.einsum("...i,ki->...k", x, prototypes, preferred_element_type=jnp.float32)
            for x in sets
        ]
        return [constrain_scores(x) for x in logits]


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

    def _bottleneck(self, x: Array) -> Array:
        x = constrain_batch(x)
        for i in range(self.layers):
            last = i == self.layers - 1
            width = self.bottleneck_dim if last else self.hidden_dim
            # The names are the reference's positions in its nn.Sequential: mlp.0, mlp.2, mlp.4.
            x = constrain_batch(linear(width, True, self.dtype, f"mlp_{2 * i}")(x))
            x = x if last else gelu(x)
        return l2_normalize(x)

    @nn.compact
    def __call__(self, features: Array | Sequence[Array]) -> Any:
        """Logits, bounded by the gains, of one set of features or of several in one pass.

        Args:
          features: [..., D], or a list of [G, rows, D]: the MLP runs once on all rows, and the
            prototypes are normalised (and their gradients summed) once.

        Returns:
          [..., K], or a list of [G, rows, K]; `Scores` in their place with a `prototype_block`.
        """
        last_layer = WeightNormLinear(
            self.prototypes, self.prototype_block, self.dtype, name="last_layer"
        )
        if not isinstance(features, (list, tuple)):
            return last_layer([self._bottleneck(features)])[0]
        ends = np.cumsum([x.shape[1] for x in features])[:-1]
        bottleneck = self._bottleneck(jnp.concatenate(features, axis=1))
        return last_layer(jnp.split(bottleneck, ends, axis=1))
