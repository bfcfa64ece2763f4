"""The transformer block, with stochastic depth that computes only the kept crops."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.models.layers import (
    Attention,
    LayerScale,
    Mlp,
    SwiGLU,
    layer_norm,
    pack,
    swiglu_hidden_dim,
    unpack,
)
from dinov2_jax.ops.stochastic_depth import (
    gather,
    kept_crops,
    sample_kept,
    scale_and_scatter,
    split_keys,
)

# A residual branch: packed tokens [G, T, D] and the crop sets they came from -> [G, T, D].
Branch = Callable[[Array, Sequence[Array]], Array]


def add_residual(
    crops: Sequence[Array], branch: Branch, gamma: Array | float, keys: Array | None, rate: float
) -> list[Array]:
    """x + gamma * branch(x); each group skips the branch for a share `rate` of its crops.

    In every crop set exactly k = max(int(b * (1 - rate)), 1) of a group's b crops keep the branch.
    Their residuals are scaled by b / k (not 1 / (1 - rate)). LayerScale comes after the branch.
    Source: FB dinov2/layers/block.py, list path; paper section 5.

    Args:
      crops: crop sets [G, b, N, D].
      branch: the residual branch, on packed tokens.
      gamma: LayerScale [D], or 1.0.
      keys: [G], randomness of this branch; None computes every crop (evaluation, teacher).
      rate: share of crops that skip the branch.
    """
    if keys is None or rate == 0.0:
        out = unpack(branch(pack(crops), crops), crops)
        return [x + (gamma * o).astype(x.dtype) for x, o in zip(crops, out, strict=True)]
    indices = [
        sample_kept(set_keys, x.shape[1], kept_crops(x.shape[1], rate))
        for x, set_keys in zip(crops, split_keys(keys, len(crops)), strict=True)
    ]
    kept = [gather(x, index) for x, index in zip(crops, indices, strict=True)]
    out = unpack(branch(pack(kept), kept), kept)
    return [
        scale_and_scatter(x, index, gamma, o)
        for x, index, o in zip(crops, indices, out, strict=True)
    ]


class Block(nn.Module):
    """Pre-norm transformer block on a list of crop sets."""

    heads: int
    ffn: str = "mlp"
    mlp_ratio: float = 4.0
    layerscale: float | None = 1e-5
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"

    def _ffn(self, dim: int) -> nn.Module:
        if self.ffn == "swiglu":
            hidden = swiglu_hidden_dim(dim, self.mlp_ratio)
            return SwiGLU(hidden, self.ffn_bias, self.dtype, name="mlp")
        return Mlp(int(dim * self.mlp_ratio), self.ffn_bias, self.dtype, name="mlp")

    def _gamma(self, dim: int, name: str) -> Array | float:
        return LayerScale(self.layerscale, name=name)(dim) if self.layerscale else 1.0

    @nn.compact
    def __call__(
        self, crops: Sequence[Array], keys: Array | None = None, drop_rate: float = 0.0
    ) -> list[Array]:
        """Crop sets [G, b, N, D] -> the same shapes; `keys` [G] turn stochastic depth on."""
        dim = crops[0].shape[-1]
        attn_keys, ffn_keys = (None, None) if keys is None else split_keys(keys, 2)
        norm1, norm2 = layer_norm(self.dtype, "norm1"), layer_norm(self.dtype, "norm2")
        attn = Attention(
            self.heads, self.qkv_bias, self.proj_bias, self.dtype, self.attention, name="attn"
        )
        ffn = self._ffn(dim)
        gamma1, gamma2 = self._gamma(dim, "ls1"), self._gamma(dim, "ls2")
        crops = add_residual(
            crops, lambda x, like: attn(norm1(x), like), gamma1, attn_keys, drop_rate
        )
        return add_residual(crops, lambda x, like: ffn(norm2(x)), gamma2, ffn_keys, drop_rate)
