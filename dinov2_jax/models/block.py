"""The transformer block and the stack of blocks; stochastic depth computes only the kept crops."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.models.layers import Affine, Attention, FeedForward, LayerNorm, LayerScale
from dinov2_jax.models.packing import CropSet, kept_rows, kept_sets, pack, row_scales, unpack
from dinov2_jax.ops.layout import row_major
from dinov2_jax.ops.stochastic_depth import add_rows, split_keys, take_rows
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

# A residual branch with its LayerScale: packed tokens [G, T, D] and their crop sets -> [G, T, D].
Branch = Callable[[Array, Sequence[CropSet]], Array]


def add_residual(
    x: Array, sets: Sequence[CropSet], branch: Branch, keys: Array | None, rate: float
) -> Array:
    """x + branch(x); each group skips the branch for a share `rate` of its crops.

    In every crop set exactly k = max(int(b * (1 - rate)), 1) of a group's b crops keep the branch.
    Their residuals are scaled by b / k (not 1 / (1 - rate)).
    Source: FB dinov2/layers/block.py, list path; paper section 5.

    Args:
      x: packed tokens [G, T, D] of the crop sets `sets`.
      keys: [G], randomness of this branch; None computes every crop (evaluation, teacher).
    """
    if keys is None or rate == 0.0:
        return x + branch(x, sets).astype(x.dtype)
    rows = kept_rows(keys, sets, rate, x.shape[1])
    kept, x = take_rows(x, rows)
    out = branch(row_major(kept), kept_sets(sets, rate))
    return add_rows(x, rows, row_scales(sets, rate, rows.shape[-1]), out)


class Block(nn.Module):
    """Pre-norm transformer block on packed crop sets."""

    heads: int
    ffn: str = "mlp"
    mlp_ratio: float = 4.0
    layerscale: float | None = 1e-5
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"

    def _gamma(self, dim: int, name: str) -> Array | None:
        return LayerScale(self.layerscale, name=name)(dim) if self.layerscale else None

    @nn.compact
    def __call__(
        self, x: Array, sets: Sequence[CropSet], keys: Array | None = None, drop_rate: float = 0.0
    ) -> Array:
        """Packed tokens [G, T, D] -> the same shape; `keys` [G] turn stochastic depth on."""
        attn_keys, ffn_keys = (None, None) if keys is None else split_keys(keys, 2)
        norm1, norm2 = (LayerNorm(self.dtype, name=name) for name in ("norm1", "norm2"))
        attn = Attention(
            self.heads, self.qkv_bias, self.proj_bias, self.dtype, self.attention, name="attn"
        )
        ffn = FeedForward(self.ffn, self.mlp_ratio, self.ffn_bias, self.dtype, name="mlp")
        gamma1, gamma2 = (self._gamma(x.shape[-1], name) for name in ("ls1", "ls2"))

        def attend(x: Array, sets: Sequence[CropSet]) -> Array:
            normed, affine = _before(norm1, x, keys)
            return _after(lambda gain: attn(normed, sets, affine, gain), gamma1, keys)

        def transform(x: Array, sets: Sequence[CropSet]) -> Array:
            normed, affine = _before(norm2, x, keys)
            return _after(lambda gain: ffn(normed, affine, gain), gamma2, keys)

        x = add_residual(x, sets, attend, attn_keys, drop_rate)
        return add_residual(x, sets, transform, ffn_keys, drop_rate)


def _before(norm: LayerNorm, x: Array, keys: Array | None) -> tuple[Array, Affine | None]:
    """What a branch's first layer takes: in training the scale and bias go into its weights.

    The backward pass then keeps one array and not two. Elsewhere the weights are not computed anew
    for every batch.
    """
    return (norm(x), None) if keys is None else norm.apart(x)


def _after(
    branch: Callable[[Array | None], Array], gamma: Array | None, keys: Array | None
) -> Array:
    """gamma times the branch: in training gamma goes into the weights of the branch's last layer.

    The backward pass then finds gamma's gradient from that of the weights, and reads no tokens.
    """
    if gamma is None or keys is not None:
        return branch(gamma)
    return gamma * branch(None)


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
    sets = [(x.shape[1], x.shape[2]) for x in crops]

    def step(x: Array, params: Any, keys: Array | None, rate: float) -> Array:
        x = block.apply({"params": params}, constrain_batch(x), sets, keys, rate)
        return constrain_batch(x)

    if remat != "none":
        step = jax.checkpoint(step, static_argnums=(3,), prevent_cse=not scan, policy=REMAT[remat])
    x, kept = pack(crops), []
    if scan:
        x, kept = _scan(step, x, (params, block_keys), rates, keep)
    else:
        for i in range(depth):
            layer = params[i] if apart else jax.tree.map(lambda p, i=i: p[i], params)
            x = step(x, layer, None if keys is None else block_keys[i], float(rates[i]))
            kept += [x] * (i in keep)
    return unpack(x, sets), [unpack(y, sets) for y in kept]


def _scan(
    step: Callable[..., Any], x: Array, layers: Any, rates: Any, keep: Sequence[int]
) -> tuple[Array, list[Array]]:
    """lax.scan of `step` over the leading axis of `layers`, storing only the blocks in `keep`."""
    # A block writes to the slot of the next kept block, which overwrites it; the blocks after the
    # last kept one write to a slot that nobody reads.
    slots = np.searchsorted(np.asarray(keep, int), np.arange(len(rates)))
    kept = jnp.zeros((int(slots.max()) + 1, *x.shape), x.dtype) if keep else None

    def body(carry: Any, layer: Any) -> tuple[Any, None]:
        (x, kept), (weights, slot) = carry, layer
        x = step(x, *weights, float(rates[0]))
        return (x, None if kept is None else kept.at[slot].set(x)), None

    (x, kept), _ = jax.lax.scan(body, (x, kept), (layers, jnp.asarray(slots)))
    return x, [] if kept is None else list(kept[: len(keep)])
