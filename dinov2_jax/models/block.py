"""The transformer block and the stack of blocks; stochastic depth computes only the kept crops."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.models.layers import Attention, FeedForward, LayerScale, layer_norm, pack, unpack
from dinov2_jax.ops.stochastic_depth import (
    gather,
    kept_crops,
    sample_kept,
    scale_and_scatter,
    split_keys,
)
from dinov2_jax.parallel.constraints import constrain_batch

# What the forward pass stores of each block for the backward pass, besides the block's input
# (config.model.remat). The rest is computed again.
_policies = jax.checkpoint_policies
REMAT = {
    "none": None,  # stores everything
    # Stores matrix products, except those inside the attention.
    "pointwise": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names("attention")
    ),
    "blocks": _policies.nothing_saveable,
}

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
      gamma: LayerScale [D], or 1.0.
      keys: [G], randomness of this branch; None computes every crop (evaluation, teacher).
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
        ffn = FeedForward(self.ffn, self.mlp_ratio, self.ffn_bias, self.dtype, name="mlp")
        gamma1, gamma2 = self._gamma(dim, "ls1"), self._gamma(dim, "ls2")
        crops = add_residual(
            crops, lambda x, like: attn(norm1(x), like), gamma1, attn_keys, drop_rate
        )
        return add_residual(crops, lambda x, like: ffn(norm2(x)), gamma2, ffn_keys, drop_rate)


def run_blocks(
    block: Block,
    params: Any,
    crops: list[Array],
    keys: Array | None,
    rates: np.ndarray,
    *,
    scan: bool,
    remat: str,
    keep: Sequence[int] = (),
) -> tuple[list[Array], list[list[Array]]]:
    """Runs L blocks one after the other; returns the last outputs, and those of blocks in `keep`.

    Args:
      params: of all blocks, each leaf with a leading axis L; or a tuple of L trees, never scanned.
      crops: crop sets [G, b, N, D].
      keys: [G], turn stochastic depth on, or None.
      rates: [L], stochastic depth of each block; different rates are never scanned.
      scan: lax.scan over the blocks, or unrolled.
      remat: one of REMAT.
      keep: ascending 0-based indices of blocks.
    """
    depth, apart = len(rates), isinstance(params, tuple)
    scan = scan and not apart and (keys is None or bool(np.all(rates == rates[0])))
    block_keys = None if keys is None else split_keys(keys, depth)

    def step(crops: list[Array], params: Any, keys: Array | None, rate: float) -> list[Array]:
        crops = [constrain_batch(x) for x in crops]
        crops = block.apply({"params": params}, crops, keys, rate)
        return [constrain_batch(x) for x in crops]

    if remat != "none":
        step = jax.checkpoint(step, static_argnums=(3,), prevent_cse=not scan, policy=REMAT[remat])
    if scan:
        return _scan(step, crops, (params, block_keys), rates, keep)
    kept = {}
    for i in range(depth):
        layer = params[i] if apart else jax.tree.map(lambda p, i=i: p[i], params)
        crops = step(crops, layer, None if keys is None else block_keys[i], float(rates[i]))
        kept[i] = crops
    return crops, [kept[i] for i in keep]


def _scan(
    step: Callable[..., Any], crops: list[Array], layers: Any, rates: Any, keep: Sequence[int]
) -> tuple[list[Array], list[list[Array]]]:
    """lax.scan of `step` over the leading axis of `layers`, storing only the blocks in `keep`."""
    # A block writes to the slot of the next kept block, which overwrites it; the blocks after the
    # last kept one write to a slot that nobody reads.
    slots = np.searchsorted(np.asarray(keep, int), np.arange(len(rates)))
    shape = (int(slots.max()) + 1,)
    kept = [jnp.zeros(shape + x.shape, x.dtype) for x in crops] if keep else []

    def body(carry: Any, layer: Any) -> tuple[Any, None]:
        (crops, kept), (weights, slot) = carry, layer
        crops = step(crops, *weights, float(rates[0]))
        return (crops, [k.at[slot].set(x) for k, x in zip(kept, crops, strict=False)]), None

    (crops, kept), _ = jax.lax.scan(body, (crops, kept), (layers, jnp.asarray(slots)))
    return crops, [[x[i] for x in kept] for i in range(len(keep))]
