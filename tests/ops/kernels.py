"""The kernels in a form that a CPU runs, and the float64 formula they are held to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.ops.attention import xla_attention
from dinov2_jax.ops.attention_cudnn import cudnn_attention
from dinov2_jax.ops.attention_looped import looped_attention
from dinov2_jax.ops.attention_splash import splash_attention
from dinov2_jax.ops.attention_triton import triton_attention

KERNELS = {
    "xla": xla_attention,
    "looped": looped_attention,
    "cudnn": functools.partial(cudnn_attention, implementation="xla"),
    "splash": functools.partial(splash_attention, interpret=True),
    "triton": functools.partial(triton_attention, interpret=True),
}
HEAD_DIM = 64
# Relative to the largest element. The fused kernels rebuild the softmax weights from a logarithm of
# about 25 in fp32, which alone costs 2e-6.
TOLERANCE = 1e-5


def draw(*shape, dtype=jnp.float32):
    """q, k, v and a cotangent; the scale makes the softmax far from uniform."""
    scales = (2.0, 2.0, 1.0, 1.0)
    keys = jax.random.split(jax.random.key(0), 4)
    return [
        (s * jax.random.normal(key, shape)).astype(dtype)
        for s, key in zip(scales, keys, strict=True)
    ]


def run(kernel, q, k, v, cotangent):
    """The output and the gradients of q, k and v."""
    out, vjp = jax.vjp(kernel, q, k, v)
    return out, *vjp(cotangent.astype(out.dtype))


def formula(q, k, v, cotangent):
    """Output and gradients in float64, the derivative of softmax written out."""
    q, k, v, dout = (np.asarray(x, np.float64).swapaxes(-2, -3) for x in (q, k, v, cotangent))
    scale = q.shape[-1] ** -0.5
    weights = np.exp(scale * q @ k.swapaxes(-1, -2))
    weights /= weights.sum(-1, keepdims=True)
    dweights = dout @ v.swapaxes(-1, -2)
    dlogits = weights * (dweights - (dweights * weights).sum(-1, keepdims=True))
    found = (
        weights @ v,
        scale * dlogits @ k,
        scale * dlogits.swapaxes(-1, -2) @ q,
        weights.swapaxes(-1, -2) @ dout,
    )
    return [x.swapaxes(-2, -3) for x in found]


def assert_equal(got, want, tolerance):
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        error = np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()
        assert error <= tolerance * np.abs(np.asarray(y, np.float64)).max(), (name, error)
