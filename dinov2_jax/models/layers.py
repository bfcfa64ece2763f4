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

from dinov2_jax.models.packing import CropSet, pack, unpack
from dinov2_jax.ops.attention import attention, platform_in_use
from dinov2_jax.ops.gelu import gelu
from dinov2_jax.ops.layer_norm import normalize
from dinov2_jax.ops.layout import row_major
from dinov2_jax.ops.weight_product import weight_product
from dinov2_jax.parallel.constraints import (
    constrain_batch,
    constrain_columns,
    replicate,
    split_parts,
    tensor_shards,
)

EPSILON = 1e-6  # of every LayerNorm; the reference's
Affine = tuple[Array, Array]  # scale and bias of a LayerNorm, [D]


def compute_dtype(name: str) -> Any:
    """The dtype of matrix products: bf16 on accelerators and fp32 on CPU when `name` is "auto"."""
    # DINOv2: bf16, which needs no gradient scaler; the reference uses fp16 with one. In both,
    # devices sum the gradients of the backbone in this dtype, and those of the heads in fp32.
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]


def swiglu_hidden_dim(dim: int, mlp_ratio: float = 4.0) -> int:
    """Width of the gated hidden layer: 2/3 of the MLP's, rounded up to a multiple of 8."""
    return (int(int(dim * mlp_ratio) * 2 / 3) + 7) // 8 * 8


class LayerNorm(nn.Module):
    """LayerNorm with the reference's epsilon and fp32 statistics."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale, bias = self.affine(x.shape[-1])
        return (normalize(x, EPSILON, jnp.float32) * scale + bias).astype(self.dtype)

    def apart(self, x: Array) -> tuple[Array, Affine]:
        """The normalised x, and scale and bias for the linear layer that follows."""
        return row_major(normalize(x, EPSILON, self.dtype)), self.affine(x.shape[-1])

    @nn.compact
    def affine(self, dim: int) -> Affine:
        scale = self.param("scale", nn.initializers.ones, (dim,))
        return scale, self.param("bias", nn.initializers.zeros, (dim,))


class Linear(nn.Module):
    """A linear layer with the backbone's initialisation.

    Tokens stay on their devices before and after it, whatever the mesh: weights are what travels.

    Attributes:
      tensor: the side of the kernel that a tensor axis splits: "in", "out", or "" for neither.
      parts: how many projections are packed into the features, such as 3: q, k and v.
      fp32_gradients: devices sum the gradients of the weights in fp32, not in `dtype`.
    """

    features: int
    use_bias: bool
    dtype: DTypeLike = jnp.float32
    tensor: str = ""
    parts: int = 1
    fp32_gradients: bool = False

    @nn.compact
    def __call__(self, x: Array, affine: Affine | None = None, gain: Array | None = None) -> Array:
        """[..., D] -> [..., features], packed parts [..., parts, F] if a tensor axis splits them.

        What the layers beside it left undone goes into the weights, which are smaller than x:
        (x scale + bias) W equals x (scale W) + bias W.

        Args:
          affine: of the LayerNorm before.
          gain: of the LayerScale behind, [features].
        """
        x = constrain_columns(x) if self.tensor == "in" else constrain_batch(x)
        kernel, bias = self.weights(x.shape[-1])
        if affine is not None:
            scale, shift = affine
            bias = bias + jnp.einsum("d,df->f", shift, kernel, precision="highest")
            kernel = scale[:, None] * kernel
        if gain is not None:
            kernel, bias = kernel * gain, bias * gain
        x = x.astype(self.dtype)
        kernel = kernel if self.fp32_gradients else kernel.astype(self.dtype)
        if tensor_shards() > 1:
            if self.parts > 1:
                kernel = split_parts(kernel, self.parts)
                bias = split_parts(bias, self.parts) if jnp.ndim(bias) else bias
            elif not self.tensor:
                # XLA would split a kernel that no rule splits over "tensor", and add up tokens.
                kernel = replicate(kernel)
        return self._placed(x, kernel, bias)

    def each_part(self, x: Array) -> list[Array]:
        """[..., D] -> the parts [..., F], each a product of its own.

        Where each part goes to a kernel of its own, a GPU then need not copy it out of the packed
        features. With gradients it would copy all the same, to fill up odd numbers of tokens.
        """
        x = constrain_batch(x).astype(self.dtype)
        kernel, bias = self.weights(x.shape[-1])
        kernels = jnp.split(kernel.astype(self.dtype), self.parts, axis=-1)
        biases = jnp.split(bias, self.parts) if jnp.ndim(bias) else [bias] * self.parts
        return [self._placed(x, *pair) for pair in zip(kernels, biases, strict=True)]

    @nn.compact
    def weights(self, in_dim: int) -> tuple[Array, Array | float]:
        """The kernel [in_dim, features], and the bias [features] or 0."""
        kernel = self.param("kernel", nn.initializers.normal(0.02), (in_dim, self.features))
        if not self.use_bias:
            return kernel, 0.0
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))

    @nn.nowrap
    def _placed(self, x: Array, kernel: Array, bias: Array | float) -> Array:
        out = self._product(x, kernel, bias)
        return row_major(constrain_columns(out) if self.tensor == "out" else constrain_batch(out))

    @nn.nowrap
    def _product(self, x: Array, kernel: Array, bias: Array | float) -> Array:
        if self.fp32_gradients:
            # The bias is added before the sum is rounded, so that its gradient is not rounded.
            return (weight_product(x, kernel, 0) + bias).astype(self.dtype)
        return jnp.tensordot(x, kernel, 1) + jnp.asarray(bias, self.dtype)


def linear(
    features: int, use_bias: bool, dtype: DTypeLike, name: str, tensor: str = "", parts: int = 1
) -> Linear:
    """A linear layer of a block."""
    return Linear(features, use_bias, dtype, tensor, parts, name=name)


class Attention(nn.Module):
    """Self-attention with one fused projection whose outputs are [q; k; v], each head-major."""

    heads: int
    qkv_bias: bool = True
    proj_bias: bool = True
    dtype: DTypeLike = jnp.float32
    backend: str = "auto"  # see ops/attention.py

    @nn.compact
    def __call__(
        self,
        packed: Array,
        sets: Sequence[CropSet],
        affine: Affine | None = None,
        gain: Array | None = None,
    ) -> Array:
        """[G, T, D] -> [G, T, D]; tokens attend only within their own crop.

        Args:
          affine, gain: see `Linear`; of its first and of its last layer.
        """
        dim, outs = packed.shape[-1], []
        for triple in self._projected(packed, sets, affine):  # one attention call per crop size
            out = checkpoint_name(attention(*triple, self.backend), "attention")
            outs.append(out.reshape(*out.shape[:3], dim))
        return linear(dim, self.proj_bias, self.dtype, "proj", "in")(pack(outs), gain=gain)

    @nn.nowrap
    def _projected(
        self, packed: Array, sets: Sequence[CropSet], affine: Affine | None
    ) -> list[tuple[Array, ...]]:
        """q, k, v [G, b, N, H, head_dim] of every crop set."""
        dim = packed.shape[-1]
        split = self.heads, dim // self.heads
        project = linear(3 * dim, self.qkv_bias, self.dtype, "qkv", "out", 3)
        if affine is None and platform_in_use() == "gpu" and tensor_shards() == 1:
            parts = [unpack(x, sets) for x in project.each_part(packed)]
            return [
                tuple(x.reshape(*x.shape[:3], *split) for x in triple)
                for triple in zip(*parts, strict=True)
            ]
        # [G, b, N, 3D] or [G, b, N, 3, D]
        crops = unpack(project(packed, affine), sets)
        return [tuple(jnp.moveaxis(x.reshape(*x.shape[:3], 3, *split), 3, 0)) for x in crops]


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
    def __call__(self, x: Array, affine: Affine | None = None, gain: Array | None = None) -> Array:
        """[..., D] -> [..., D]; `affine` and `gain` as in `Attention`."""
        dim = x.shape[-1]
        options = self.use_bias, self.dtype
        if self.kind == "mlp":
            expand = linear(int(dim * self.ratio), *options, "fc1", "out")
            hidden = row_major(gelu(expand(x, affine)))
            return linear(dim, *options, "fc2", "in")(hidden, gain=gain)
        expand = linear(2 * swiglu_hidden_dim(dim, self.ratio), *options, "w12", "out", 2)
        packed = expand(x, affine)
        if packed.ndim > x.ndim:
            gate, value = packed[..., 0, :], packed[..., 1, :]
        else:
            gate, value = jnp.split(packed, 2, axis=-1)
        return linear(dim, *options, "w3", "in")(jax.nn.silu(gate) * value, gain=gain)


class LayerScale(nn.Module):
    """A trainable gain per channel; returned, because the caller applies it."""

    init_value: float

    @nn.compact
    def __call__(self, dim: int) -> Array:
        return self.param("gamma", nn.initializers.constant(self.init_value), (dim,))
