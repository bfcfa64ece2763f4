"""The choice among attention backends, and their use by the model and under a mesh."""

import functools
import logging
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ops import attention as attention_module
from dinov2_jax.ops.attention import (
    FUSED,
    SPLASH_MIN_TOKENS,
    attention,
    choose,
    per_device,
    refusal,
)
from dinov2_jax.parallel.mesh import BATCH, make_mesh
from tests.ops.kernels import HEAD_DIM, KERNELS, TOLERANCE, assert_equal, draw, formula, run


def test_leading_axes():
    """[G, b, N, H, head_dim], as the model has them."""
    inputs = draw(2, 3, 7, 2, 8)
    assert_equal(run(attention, *inputs), formula(*inputs), TOLERANCE)


# --------------------------------------------------------------------------- the choice
@pytest.fixture
def everything_runs(monkeypatch):
    """All kernels in a form that CPU runs, each accepted on its platform."""
    fused = {name: FUSED[name]._replace(kernel=KERNELS[name]) for name in FUSED}
    monkeypatch.setattr(attention_module, "FUSED", fused)
    refusal.cache_clear()
    attention_module._log_once.cache_clear()
    yield
    refusal.cache_clear()


def shape(tokens, head_dim=HEAD_DIM):
    return (8, tokens, 6, head_dim)


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "want"),
    [
        ("cpu", jnp.float32, 257, "looped"),
        ("cpu", jnp.bfloat16, 1370, "looped"),
        ("gpu", jnp.bfloat16, 37, "cudnn"),
        ("gpu", jnp.float16, 257, "cudnn"),
        ("gpu", jnp.float32, 257, "xla"),
        ("tpu", jnp.bfloat16, 257, "xla"),
        ("tpu", jnp.bfloat16, SPLASH_MIN_TOKENS - 1, "xla"),
        ("tpu", jnp.bfloat16, 1370, "splash"),
        ("tpu", jnp.float32, 1370, "splash"),
    ],
)
def test_auto(platform, dtype, tokens, want, everything_runs, caplog):
    assert choose("auto", platform, shape(tokens), dtype) == want
    assert not caplog.records


@pytest.mark.parametrize(
    ("backend", "platform"), [("cudnn", "gpu"), ("triton", "gpu"), ("splash", "tpu")]
)
def test_a_forced_choice_wins(backend, platform, everything_runs):
    assert choose(backend, platform, shape(64), jnp.bfloat16) == backend
    assert choose("xla", platform, shape(1370), jnp.bfloat16) == "xla"


def test_triton_where_cudnn_refuses(everything_runs, monkeypatch, caplog):
    def absent(q, k, v):
        raise RuntimeError("cuDNN is not detected.")

    broken = attention_module.FUSED["cudnn"]._replace(kernel=absent)
    monkeypatch.setitem(attention_module.FUSED, "cudnn", broken)
    for tokens in (37, 257, 257):
        assert choose("auto", "gpu", shape(tokens), jnp.bfloat16) == "triton"
    (record,) = caplog.records  # one line, however many shapes and calls
    assert record.getMessage() == (
        "attention: cudnn cannot run here (RuntimeError: cuDNN is not detected.); triton is used "
        "instead"
    )


def test_without_pallas_for_gpus(everything_runs, monkeypatch, caplog):
    """A JAX that has dropped the deprecated kernel."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.ops.gpu", None)
    assert choose("triton", "gpu", shape(64), jnp.bfloat16) == "xla"
    assert "ModuleNotFoundError" in caplog.text or "ImportError" in caplog.text


@pytest.mark.parametrize(
    ("backend", "platform", "head_dim", "dtype", "reason"),
    [
        ("cudnn", "cpu", 64, jnp.bfloat16, "it needs a GPU, and this is a CPU"),
        ("splash", "gpu", 64, jnp.bfloat16, "it needs a TPU, and this is a GPU"),
        ("cudnn", "gpu", 64, jnp.float32, "it takes bfloat16 or float16, not float32"),
        ("splash", "tpu", 64, jnp.float16, "it takes bfloat16 or float32, not float16"),
        ("splash", "tpu", 24, jnp.bfloat16, "head_dim of 64, not 24"),
        ("triton", "gpu", 24, jnp.bfloat16, "not 24"),
    ],
)
def test_what_cannot_run_becomes_xla(
    backend, platform, head_dim, dtype, reason, everything_runs, caplog
):
    assert choose(backend, platform, shape(64, head_dim), dtype) == "xla"
    assert reason in caplog.text
    assert "xla is used instead" in caplog.text


def test_an_old_gpu(everything_runs, monkeypatch, caplog):
    monkeypatch.setattr(attention_module, "_compute_capability", lambda: 7.0)  # V100
    assert choose("auto", "gpu", shape(64), jnp.bfloat16) == "xla"
    assert "compute capability 8.0" in caplog.text


def test_a_missing_backend_never_ends_a_run(caplog):
    """On this machine, with nothing replaced: the result is XLA's, to the bit."""
    attention_module._log_once.cache_clear()
    q, k, v, _ = draw(2, 9, 2, 16)
    for backend in ("cudnn", "triton", "splash"):
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(attention(q, k, v, backend), attention(q, k, v, "xla"))
    assert len(caplog.records) == 3


def test_an_unknown_backend():
    q, k, v, _ = draw(2, 9, 2, 16)
    with pytest.raises(
        ValueError, match="'flash' is unknown; choose one of auto, xla, looped, cudnn"
    ):
        attention(q, k, v, "flash")


def test_the_platform_of_the_mesh_comes_first():
    assert attention_module.platform_in_use() == "cpu"
    described = jax.sharding.AbstractDevice("NVIDIA H100", None, "cuda")
    mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=described)
    with jax.sharding.use_abstract_mesh(mesh):
        assert attention_module.platform_in_use() == "gpu"
    with jax.default_device("cpu"):
        assert attention_module.platform_in_use() == "cpu"


# ------------------------------------------------------------------- as the model uses it
def on_cpu_as(name, monkeypatch):
    """Lets attention() choose kernel `name`, in its CPU form, as if the machine had it."""
    stands_in = FUSED[name]._replace(platform="cpu", dtypes=(jnp.float32,), kernel=KERNELS[name])
    monkeypatch.setitem(attention_module.FUSED, name, stands_in)
    refusal.cache_clear()


@pytest.fixture(autouse=True)
def forget_refusals():
    yield
    refusal.cache_clear()


def tiny_vit(**options):
    return VisionTransformer(
        dim=128, depth=2, heads=2, patch_size=7, image_size=28, layerscale=0.5, **options
    )


@functools.cache
def tiny_params():
    images = np.zeros((1, 28, 28, 3), np.float32)
    return jax.jit(lambda key: tiny_vit().init(key, images)["params"])(jax.random.key(0))


def loss_and_gradient(**options):
    """One packed pass over two crop sizes, 17 and 5 tokens."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(2, 3, side, side, 3)).astype(np.float32) for side in (28, 14)]

    def loss(params):
        sets = tiny_vit(**options).apply({"params": params}, images)
        return sum(jnp.sum(jnp.sin(x["prenorm"])) for x in sets)

    return jax.jit(jax.value_and_grad(loss))(tiny_params())


@functools.cache
def by_xla():
    return loss_and_gradient(attention="xla")


@pytest.mark.parametrize(
    ("name", "mesh"), [("cudnn", (1, 1, 1)), ("splash", (2, 1, 2)), ("triton", (2, 1, 2))]
)
def test_scanned_rematerialised_blocks(name, mesh, monkeypatch):
    want = by_xla()
    on_cpu_as(name, monkeypatch)
    called = []
    stands_in = attention_module.FUSED[name]

    def spy(q, k, v):
        called.append(q.shape[:3])
        return stands_in.kernel(q, k, v)

    monkeypatch.setitem(attention_module.FUSED, name, stands_in._replace(kernel=spy))
    with jax.set_mesh(make_mesh(*mesh)):
        got = loss_and_gradient(attention=name, remat="blocks")
    # 2 groups of 3 images and 2 heads; the refusal traced one image with all of its heads.
    share = 6 // mesh[0], 2 // mesh[2]
    assert set(called) == {(b, n, h) for n in (5, 17) for b, h in (share, (1, 2))}
    assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-5)
    for x, y in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * np.abs(y).max() + 1e-7)


@pytest.mark.parametrize("name", ["cudnn", "splash", "triton"])
def test_under_vmap(name):
    inputs = draw(2, 1, 21, 2, HEAD_DIM)
    got = jax.jit(jax.vmap(functools.partial(run, KERNELS[name])))(*inputs)
    assert_equal(got, formula(*inputs), TOLERANCE)


# ------------------------------------------------------------------------------- sharding
@pytest.mark.parametrize(
    ("name", "mesh", "batch", "heads"),
    [
        ("cudnn", (2, 2, 2), 4, 2),
        ("splash", (2, 2, 2), 4, 2),
        ("triton", (8, 1, 1), 8, 2),
        ("triton", (2, 2, 2), 4, 3),  # 3 heads do not divide over 2 devices
        ("triton", (4, 2, 1), 5, 2),  # nor do 5 images over 8
    ],
)
def test_each_device_computes_its_share(name, mesh, batch, heads):
    inputs = draw(batch, 21, heads, HEAD_DIM)
    data, fsdp, tensor = mesh
    shares = []

    def kernel(q, k, v):
        shares.append(q.shape)
        return KERNELS[name](q, k, v)

    mesh = make_mesh(data, fsdp, tensor)
    with jax.set_mesh(mesh):
        if batch % (data * fsdp) == 0:
            inputs = [jax.device_put(x, jax.NamedSharding(mesh, BATCH)) for x in inputs]
        program = jax.jit(run, static_argnums=0).lower(
            functools.partial(per_device, kernel), *inputs
        )
        got = program.compile()(*inputs)
    assert_equal(got, formula(*inputs), TOLERANCE)
    assert set(shares) == {
        (
            -(-batch // (data * fsdp)),
            21,
            heads // tensor if heads % tensor == 0 else heads,
            HEAD_DIM,
        )
    }


def test_data_parallel_kernels_need_no_messages():
    """Images are independent: forward and backward compile to a program without collectives."""
    inputs, mesh = draw(8, 21, 2, HEAD_DIM), make_mesh(4, 2)
    with jax.set_mesh(mesh):
        inputs = [jax.device_put(x, jax.NamedSharding(mesh, BATCH)) for x in inputs]
        function = functools.partial(run, functools.partial(per_device, KERNELS["triton"]))
        program = jax.jit(function).lower(*inputs).compile().as_text()
    assert not re.findall(r"all-(?:gather|reduce|to-all)|collective-permute", program)


def test_inside_a_shard_map_the_kernel_is_called_as_it_is():
    inputs, mesh = draw(8, 9, 2, HEAD_DIM), make_mesh(8)
    spec = jax.P(BATCH[0])
    kernel = functools.partial(per_device, KERNELS["cudnn"])
    with jax.set_mesh(mesh):
        mapped = jax.shard_map(
            functools.partial(run, kernel),
            in_specs=(spec,) * 4,
            out_specs=(spec,) * 4,
            check_vma=False,
        )
        got = jax.jit(mapped)(*inputs)
    assert_equal(got, formula(*inputs), TOLERANCE)
