"""The parts of a transformer block: attention, the two feed-forward networks, LayerScale.

Source: FB dinov2/layers; paper Table 17. All weights are drawn from normal(0, 0.02): the reference
uses torch's `trunc_normal_`, which truncates at +-2, i.e. at 100 sigma, and so is an ordinary
normal. `jax.nn.initializers.truncated_normal` would truncate at 2 sigma.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from dinov2_jax.ops.attention import attention
from dinov2_jax.ops.gelu import gelu


def compute_dtype(name: str) -> Any:
    """The dtype of matrix products: bf16 on accelerators and fp32 on CPU when `name` is "auto"."""
    # DINOv2: bf16, which needs no gradient scaler; the reference uses fp16 with one.
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]


def swiglu_hidden_dim(dim: int, mlp_ratio: float = 4.0) -> int:
    """Width of the gated hidden layer: 2/3 of the MLP's, rounded up to a multiple of 8."""
    return (int(int(dim * mlp_ratio) * 2 / 3) + 7) // 8 * 8


def layer_norm(dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """LayerNorm with the reference's epsilon; statistics in fp32, two-pass variance."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


def linear(features: int, use_bias: bool, dtype: DTypeLike, name: str) -> nn.Dense:
    """A linear layer with the backbone's initialisation."""
    init = nn.initializers.normal(0.02)
    return nn.Dense(features, use_bias=use_bias, kernel_init=init, dtype=dtype, name=name)


def pack(crops: Sequence[Array]) -> Array:
    """Concatenates crop sets [G, b, N, D] along tokens: [G, T, D], without padding."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in crops], axis=1)


def unpack(packed: Array, like: Sequence[Array]) -> list[Array]:
    """Splits [G, T, D] into crop sets with the leading shapes of `like`; the inverse of `pack`."""
    out, start = [], 0
    for x in like:
        groups, crops, tokens = x.shape[:3]
        part = packed[:, start : start + crops * tokens]
        out.append(part.reshape(groups, crops, tokens, packed.shape[-1]))
        start += crops * tokens
    return out


class Attention(nn.Module):
    """Self-attention with one fused projection whose outputs are [q; k; v], each head-major."""

    heads: int
    qkv_bias: bool = True
    proj_bias: bool = True
    dtype: DTypeLike = jnp.float32
    backend: str = "auto"  # see ops/attention.py

    @nn.compact
    def __call__(self, packed: Array, like: Sequence[Array]) -> Array:
        """[G, T, D] -> [G, T, D]; tokens attend only within their own crop (`like`)."""
        dim = packed.shape[-1]
        qkv = linear(3 * dim, self.qkv_bias, self.dtype, "qkv")(packed)
        outs = []
        for crops in unpack(qkv, like):  # [G, b, N, 3D], one attention call per crop size
            split = crops.reshape(*crops.shape[:3], 3, self.heads, dim // self.heads)
            q, k, v = jnp.moveaxis(split, 3, 0)
            out = checkpoint_name(attention(q, k, v, self.backend), "attention")
            outs.append(out.reshape(*crops.shape[:3], dim))
        return linear(dim, self.proj_bias, self.dtype, "proj")(pack(outs))


class FeedForward(nn.Module):
    """The feed-forward network; its hidden width for "swiglu" is that of `swiglu_hidden_dim`.

    "mlp": linear, exact GELU, linear. "swiglu": silu(a) * b with a, b from one packed projection
    (a, the gated half, first).
    """

    kind: str
    ratio: float  # of the hidden width to that of the tokens
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim = x.shape[-1]
        options = self.use_bias, self.dtype
        if self.kind == "mlp":
            hidden = gelu(linear(int(dim * self.ratio), *options, "fc1")(x))
            return linear(dim, *options, "fc2")(hidden)
        packed = linear(2 * swiglu_hidden_dim(dim, self.ratio), *options, "w12")(x)
        gate, value = jnp.split(packed, 2, axis=-1)
        return linear(dim, *options, "w3")(jax.nn.silu(gate) * value)


class LayerScale(nn.Module):
    """A trainable gain per channel; returned, because the caller fuses the product."""

    init_value: float

    @nn.compact
    def __call__(self, dim: int) -> Array:
        return self.param("gamma", nn.initializers.constant(self.init_value), (dim,))
