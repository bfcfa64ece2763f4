"""Scaled dot-product attention behind one function, on the kernel that fits the machine.

backend | where | dtypes          | tokens and head_dim
xla     | all   | all             | all; writes N^2 logits per head to memory
looped  | CPU   | fp32, bf16      | all; the same in independent small products
cudnn   | GPU   | bf16, fp16      | odd N filled to even in training; head_dim a multiple of 8
triton  | GPU   | bf16, fp16      | N filled to blocks of 64; head_dim 16, 32, 64 or 128
splash  | TPU   | fp32, bf16      | N filled to a multiple of 128; head_dim 64

All give the same values and gradients up to rounding; no token attends to what was filled up.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from dinov2_jax.ops.attention_cudnn import cudnn_attention
from dinov2_jax.ops.attention_looped import looped_attention
from dinov2_jax.ops.attention_splash import splash_attention
from dinov2_jax.ops.attention_triton import triton_attention
from dinov2_jax.parallel.mesh import BATCH

log = logging.getLogger("dinov2_jax")

# Self-attention of q, k, v [B, N, H, head_dim] -> the same shape.
Kernel = Callable[[Array, Array, Array], Array]


class Fused(NamedTuple):
    """A kernel other than XLA's, the platform that runs it and the dtypes that it accepts."""

    platform: str
    dtypes: tuple[DTypeLike, ...]
    kernel: Kernel


# The best kernel of each platform first.
FUSED = {
    "looped": Fused("cpu", (jnp.float32, jnp.bfloat16), looped_attention),
    "cudnn": Fused("gpu", (jnp.bfloat16, jnp.float16), cudnn_attention),
    # No fp32: Triton would multiply in tf32, whatever precision the user chose.
    "triton": Fused("gpu", (jnp.bfloat16, jnp.float16), triton_attention),
    "splash": Fused("tpu", (jnp.bfloat16, jnp.float32), splash_attention),
}
BACKENDS = ("auto", "xla", *FUSED)

# The fewest tokens for splash on TPU. Not measured: estimates of XLA's TPU compiler favour plain
# XLA at 197 to 261 tokens (a fused kernel fills those to 256 or 384) and flash attention at 518 px
# (1,370 tokens of 14 px), so the break-even point lies somewhere between.
SPLASH_MIN_TOKENS = 1024
# Ampere, whose tensor cores cuDNN's and Triton's attention need.
MIN_COMPUTE_CAPABILITY = 8.0


def attention(q: Array, k: Array, v: Array, backend: str = "auto") -> Array:
    """Multi-head self-attention without mask: softmax(q k^T / sqrt(head_dim)) v.

    Under a mesh (`jax.set_mesh`) the fused kernels run on each device's share of the batch, and of
    the heads if these divide. Without a mesh the operands must lie on a single device.

    Args:
      q, k, v: [..., N, H, head_dim], any number of leading batch axes.
      backend: one of BACKENDS; "auto" chooses by platform, dtype and N. XLA replaces a fused kernel
        that cannot run here, and the log says so once.

    Returns:
      [..., N, H, head_dim] in the dtype of `q`; the softmax is computed in fp32.

    Raises:
      ValueError: an unknown backend.
    """
    flat = [x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)]
    name = choose(backend, platform_in_use(), flat[0].shape, flat[0].dtype)
    out = xla_attention(*flat) if name == "xla" else per_device(FUSED[name].kernel, *flat)
    return out.reshape(q.shape)


def xla_attention(q: Array, k: Array, v: Array) -> Array:
    """[B, N, H, head_dim] -> the same; runs everywhere, and defines the result of all kernels."""
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def platform_in_use() -> str:
    """ "cpu", "gpu" or "tpu", from the mesh in use, the default device or the default backend.

    The mesh comes first because it may describe absent machines (ahead-of-time compilation).
    `lax.platform_dependent` would decide later, when the program is lowered. But then the backward
    pass stores residuals for all branches: inside the scan over blocks it would stack N^2 zeros for
    XLA's softmax weights, which a fused kernel avoids.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.config.jax_default_device
    name = getattr(device, "platform", device) or jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def choose(backend: str, platform: str, shape: tuple[int, ...], dtype: DTypeLike) -> str:
    """The backend that will run [B, N, H, head_dim]; logs each reason for a refusal once."""
    if backend not in BACKENDS:
        raise ValueError(f"attention {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    refused, chosen = [], "xla"
    for name in _candidates(backend, platform, shape[1], dtype):
        reason = refusal(name, platform, shape, jnp.dtype(dtype))
        if reason is None:
            chosen = name
            break
        refused.append((name, reason))
    for name, reason in refused:
        _log_once(name, reason, chosen)
    return chosen


def _candidates(backend: str, platform: str, tokens: int, dtype: DTypeLike) -> list[str]:
    """Fused kernels to try, the best first; none if XLA is the right choice."""
    if backend != "auto":
        return [backend] if backend in FUSED else []
    if platform == "tpu" and tokens < SPLASH_MIN_TOKENS:
        return []
    return [name for name, k in FUSED.items() if k.platform == platform and dtype in k.dtypes]


@functools.cache
def refusal(name: str, platform: str, shape: tuple[int, ...], dtype: DTypeLike) -> str | None:
    """Why a fused kernel cannot run, or None if it can; traces both its passes to find out."""
    needed, dtypes, kernel = FUSED[name]
    if platform != needed:
        return f"it needs a {needed.upper()}, and this is a {platform.upper()}"
    if dtype not in dtypes:
        return f"it takes {' or '.join(jnp.dtype(d).name for d in dtypes)}, not {dtype}"
    if platform == "gpu" and _compute_capability() < MIN_COMPUTE_CAPABILITY:
        return f"it needs a GPU of compute capability {MIN_COMPUTE_CAPABILITY} or more"
    one = jax.ShapeDtypeStruct((1, *shape[1:]), dtype)
    try:
        jax.eval_shape(lambda *qkv: jax.vjp(kernel, *qkv)[1](qkv[0]), one, one, one)
    except Exception as error:  # a kernel of another library must never end a run
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _compute_capability() -> float:
    """Compute capability of the local CUDA GPU; infinite without one (AMD, compiling ahead)."""
    try:
        return float(getattr(jax.local_devices()[0], "compute_capability", math.inf))
    except ValueError:  # AMD's name is a word, such as gfx90a
        return math.inf


@functools.cache
def _log_once(name: str, reason: str, chosen: str) -> None:
    log.warning("attention: %s cannot run here (%s); %s is used instead", name, reason, chosen)


def per_device(kernel: Kernel, q: Array, k: Array, v: Array) -> Array:
    """Runs `kernel` on each device's images and heads: XLA cannot split a kernel by itself.

    A batch that does not divide over ("data", "fsdp") is filled up with zeros. Every device of the
    "tensor" axis computes all heads if they do not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {axis: mesh.shape[axis] for axis in mesh.axis_names if axis not in mesh.manual_axes}
    if math.prod(free.values()) == 1:
        return kernel(q, k, v)
    batch, heads = q.shape[0], q.shape[2]
    split = tuple(axis for axis in BATCH[0] if axis in free)
    rows = -batch % math.prod(free[axis] for axis in split)
    tensor = "tensor" if "tensor" in free and heads % free["tensor"] == 0 else None
    spec = P(split, None, tensor, None)
    mapped = jax.shard_map(
        kernel, in_specs=(spec,) * 3, out_specs=spec, axis_names=set(free), check_vma=False
    )
    return mapped(*(jnp.pad(x, ((0, rows), (0, 0), (0, 0), (0, 0))) for x in (q, k, v)))[:batch]
