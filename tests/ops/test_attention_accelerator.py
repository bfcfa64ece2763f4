"""All backends on the GPU or TPU at hand, in bf16: error against fp32, and time.

    JAX_PLATFORMS=cuda python -m pytest tests/ops/test_attention_accelerator.py -s

prints one line a case, forward + backward. Skipped where there is only a CPU.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.ops.attention import attention, choose, platform_in_use, refusal, xla_attention

ON_CPU = jax.default_backend() == "cpu"
pytestmark = pytest.mark.skipif(ON_CPU, reason="needs a GPU or a TPU; see the first lines")
BATCH, HEADS, HEAD_DIM = 32, 16, 64  # of ViT-L
REPEATS = 20


def run(kernel, q, k, v, cotangent):
    out, vjp = jax.vjp(kernel, q, k, v)
    return out, *vjp(cotangent)


def milliseconds(function, *inputs):
    """Median of a warm program, each call waited for."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


@pytest.mark.parametrize("tokens", [37, 50, 197, 257, 261, 1370])
@pytest.mark.parametrize("backend", ["auto", "xla", "cudnn", "triton", "splash"])
def test_equals_fp32(backend, tokens):
    shape = (BATCH if tokens < 1000 else 4, tokens, HEADS, HEAD_DIM)
    inputs = [
        jax.random.normal(key, shape, jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0), 4)
    ]
    if backend in ("cudnn", "triton", "splash"):
        reason = refusal(backend, platform_in_use(), shape, jnp.dtype(jnp.bfloat16))
        if reason:
            pytest.skip(f"{backend} cannot run here ({reason})")
    with jax.default_matmul_precision("highest"):
        want = jax.jit(functools.partial(run, xla_attention))(
            *(x.astype(jnp.float32) for x in inputs)
        )
    function = jax.jit(functools.partial(run, functools.partial(attention, backend=backend)))
    got = jax.block_until_ready(function(*inputs))
    errors = []
    for x, y in zip(got, want, strict=True):
        assert x.dtype == jnp.bfloat16
        y = np.asarray(y)
        errors.append(np.abs(np.asarray(x, np.float32) - y).max() / np.abs(y).max())
    chosen = choose(backend, platform_in_use(), shape, jnp.bfloat16)
    print(
        f"\n{jax.devices()[0].device_kind} {backend}={chosen} {shape}: "
        f"{milliseconds(function, *inputs):.3f} ms, relative error of out, dq, dk, dv "
        + " ".join(f"{error:.1e}" for error in errors)
    )
    assert max(errors) < 2e-2  # bf16 has 8 bits: 2^-8 a rounding, a few of them on the way
