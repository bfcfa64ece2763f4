"""Every kernel against a float64 formula.

They run on CPU in Pallas' interpret mode; cuDNN has no CPU form, so its call runs with XLA behind
it. The programs for CUDA and TPU are lowered without being run.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.ops.attention_cudnn import cudnn_attention
from dinov2_jax.ops.attention_splash import splash_attention
from dinov2_jax.ops.attention_triton import triton_attention
from tests.ops.kernels import HEAD_DIM, KERNELS, TOLERANCE, assert_equal, draw, formula, run


# ------------------------------------------------------------------------------ the kernels
@pytest.mark.parametrize("tokens", [5, 37, 50, 64, 197, 256, 257, 261])
@pytest.mark.parametrize("name", KERNELS)
def test_values_and_gradients(name, tokens):
    inputs = draw(2, tokens, 2, HEAD_DIM)
    assert_equal(
        jax.jit(run, static_argnums=0)(KERNELS[name], *inputs), formula(*inputs), TOLERANCE
    )


@pytest.mark.parametrize("name", ["cudnn", "splash", "triton"])
def test_a_picture_of_518_px(name):
    inputs = draw(1, 1370, 1, HEAD_DIM)
    assert_equal(
        jax.jit(run, static_argnums=0)(KERNELS[name], *inputs), formula(*inputs), TOLERANCE
    )


@pytest.mark.parametrize("name", KERNELS)
def test_in_bfloat16(name):
    """8 bits of mantissa: 2^-8 a rounding, a few of them on the way."""
    inputs = draw(2, 37, 2, HEAD_DIM, dtype=jnp.bfloat16)
    got = jax.jit(run, static_argnums=0)(KERNELS[name], *inputs)
    assert all(x.dtype == jnp.bfloat16 for x in got)
    assert_equal(got, formula(*inputs), 2e-2)


@pytest.mark.parametrize("name", ["cudnn", "splash", "triton"])
def test_what_is_filled_up_has_no_influence(name, monkeypatch):
    """Padding of 1e4 in place of 0: neither values nor gradients move by a bit."""
    kernel, inputs = KERNELS[name], draw(1, 37, 2, HEAD_DIM)
    want = jax.jit(run, static_argnums=0)(kernel, *inputs)
    pad = jnp.pad
    monkeypatch.setattr(jnp, "pad", lambda x, width: pad(x, width, constant_values=1e4))
    filled = functools.partial(kernel)  # another object, so that it is compiled anew
    got = jax.jit(run, static_argnums=0)(filled, *inputs)
    for x, exact in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, exact)


@pytest.mark.parametrize("name", ["splash", "triton"])
def test_head_dims_without_a_tile_are_refused(name):
    x = jnp.zeros((1, 8, 2, 24))
    with pytest.raises(ValueError, match=r"head_dim of .*64.*, not 24"):
        KERNELS[name](x, x, x)


# -------------------------------------------------------------------- cuDNN's own program
@pytest.fixture
def cuda_present(monkeypatch):
    """JAX's Python side believes in an H100 with cuDNN 9.10, as far as lowering asks."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)


def lowered_for_cuda(function, *inputs):
    return jax.jit(function).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("tokens", [37, 50, 197, 257, 261, 1370])
def test_cudnn_lowers_forward_and_backward(tokens, cuda_present):
    inputs = draw(2, tokens, 3, HEAD_DIM, dtype=jnp.bfloat16)
    program = lowered_for_cuda(functools.partial(run, cudnn_attention), *inputs)
    calls = re.findall(r"__cudnn\$fmhaSoftmax\w*", program)
    assert sorted(set(calls)) == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    # Even lengths go through untouched, odd ones with the lengths of the sequences.
    masks = re.compile(r"mask_type\\22: \\22(\w+)\\22")
    assert set(masks.findall(program)) == ({"PADDING"} if tokens % 2 else {"NO_MASK"})
    # The forward pass alone needs no padding.
    forward = lowered_for_cuda(cudnn_attention, *inputs[:3])
    assert set(masks.findall(forward)) == {"NO_MASK"} and "stablehlo.pad" not in forward


def test_jax_refuses_odd_lengths_unpadded(cuda_present):
    """Why cudnn_attention pads. When this fails, JAX has learnt it, and the padding may go."""
    unpadded = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    inputs = draw(2, 257, 3, HEAD_DIM, dtype=jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="Unsupported sequence length"):
        lowered_for_cuda(functools.partial(run, unpadded), *inputs)


# ----------------------------------------------------- Pallas' programs, lowered but not run
@pytest.mark.parametrize("tokens", [37, 257, 1370])
def test_splash_lowers_for_tpu(tokens):
    inputs = draw(2, tokens, 3, HEAD_DIM, dtype=jnp.bfloat16)
    traced = jax.jit(functools.partial(run, splash_attention)).trace(*inputs)
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    # Forward, and one kernel each for dq and for dk, dv.
    assert len(re.findall(r"@tpu_custom_call", program)) == 3


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # from JAX 0.12 on
@pytest.mark.parametrize("tokens", [5, 37, 257, 1370])
def test_triton_lowers_for_cuda(tokens):
    inputs = draw(2, tokens, 3, HEAD_DIM, dtype=jnp.bfloat16)
    h100 = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=h100)):
        program = lowered_for_cuda(functools.partial(run, triton_attention), *inputs)
    # Forward, the sums of out * dout along rows, and one kernel for all gradients.
    found = re.findall(r'name = "(mha_\w+)"', program)
    assert sorted(found) == ["mha_backward", "mha_forward", "mha_preprocess_backward"]


def test_the_formula_is_its_own_derivative():
    """The reference of this file, against finite differences in float64."""
    inputs = [np.asarray(x, np.float64) for x in draw(1, 3, 1, 4)]
    q, k, v, cotangent = inputs
    step = np.zeros_like(q)
    step[0, 1, 0, 2] = 1e-6
    up, down = (formula(q + s, k, v, cotangent)[0] for s in (step, -step))
    slope = ((up - down) * cotangent).sum() / 2e-6
    assert slope == pytest.approx(formula(*inputs)[1][0, 1, 0, 2], rel=1e-6)
