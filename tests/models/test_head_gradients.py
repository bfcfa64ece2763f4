"""Gradients of a bf16 head are summed in fp32: over rows, and over devices.

XLA adds what devices hold of a gradient where the product ends, in the dtype of its result. CPUs do
so in fp32 whatever the program says, so the programs are read before the compiler changes that.
"""

import contextlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding

from dinov2_jax.models.head import DINOHead
from dinov2_jax.parallel.mesh import BATCH, make_mesh, state_shardings
from dinov2_jax.ssl.scores import make_scores

# No activation has the shape of a weight.
ROWS, DIM, HIDDEN, BOTTLENECK, PROTOTYPES = (8, 6), 48, 40, 24, 64
HEAD = DINOHead(PROTOTYPES, HIDDEN, BOTTLENECK, dtype=jnp.bfloat16)
WEIGHTS = {(DIM, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, BOTTLENECK), (BOTTLENECK, PROTOTYPES)}
BIASES = {(HIDDEN,), (BOTTLENECK,)}


def loss(params, features, block=0):
    factors = HEAD.apply({"params": params}, features)
    targets = make_scores(*jax.lax.stop_gradient(factors), block).softmax_center(
        jnp.zeros(PROTOTYPES), 0.04
    )
    return make_scores(*factors, block).cross_entropy(targets).mean()


def traced(block: int = 0) -> jax.stages.Traced:
    """The gradient on a mesh; call it within the mesh."""
    mesh = jax.sharding.get_mesh()
    params = jax.eval_shape(HEAD.init, jax.random.key(0), jnp.zeros((1, DIM)))["params"]
    placed = state_shardings(params, mesh, 2**11)  # bytes; every matrix is split
    features = jax.ShapeDtypeStruct((*ROWS, DIM), jnp.bfloat16, sharding=NamedSharding(mesh, BATCH))
    gradient = jax.jit(
        jax.grad(loss), static_argnums=2, in_shardings=(placed, None), out_shardings=placed
    )
    return gradient.trace(params, features, block)


@contextlib.contextmanager
def compiling_anew():
    """Without kept programs, of which nothing is dumped."""
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # it remembers whether it is in use
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def results(program: str, operation: str) -> set[tuple[str, tuple[int, ...]]]:
    """(dtype, sides in ascending order) of all results of an operation in StableHLO."""
    types = re.findall(rf"stablehlo\.{operation}\b.*-> tensor<([\dx]*)(\w+)>", program)
    return {
        (dtype, tuple(sorted(int(side) for side in sides.split("x") if side)))
        for sides, dtype in types
    }


@pytest.mark.parametrize("block", [0, 16])
def test_products_for_cuda_end_in_fp32(block):
    with jax.set_mesh(make_mesh(2)):
        program = traced(block).lower(lowering_platforms=("cuda",)).as_text()
    products, sums = results(program, "dot_general"), results(program, "reduce")
    weights = {("f32", tuple(sorted(shape))) for shape in WEIGHTS}
    if block:  # of prototypes, a block at a time
        weights -= {("f32", (BOTTLENECK, PROTOTYPES))}
        weights |= {("f32", (block, BOTTLENECK))}
    assert products >= weights
    assert sums >= {("f32", shape) for shape in BIASES}
    assert {dtype for dtype, _ in products | sums} == {"f32"}


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 2)])
def test_devices_exchange_fp32(sizes, block, tmp_path):
    options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_pass_re": "spmd-partitioning"}
    with jax.set_mesh(make_mesh(*sizes)), compiling_anew():
        traced(block).lower().compile(compiler_options=options)
    (partitioned,) = Path(tmp_path).glob("*.after_spmd-partitioning.*")
    program = partitioned.read_text()
    sums = re.findall(r"= (\w+)\[[\d,]*\]\S* (?:all-reduce|reduce-scatter)\(", program)
    assert len(sums) >= len(WEIGHTS) + len(BIASES)
    assert set(sums) == {"f32"}
    gathered = re.findall(r"= (bf16\[[\d,]*\])\S* all-gather\(", program)
    assert bool(gathered) == (sizes[1] > 1)
    assert len(gathered) == len(set(gathered)), "weights are gathered once, in the compute dtype"


def test_gradients_are_not_rounded_to_bf16():
    features = jax.random.normal(jax.random.key(1), (*ROWS, DIM))
    params = HEAD.init(jax.random.key(0), features)["params"]
    for path, gradient in jax.tree.leaves_with_path(jax.grad(loss)(params, features)):
        assert gradient.dtype == jnp.float32
        rounded = np.mean(gradient == gradient.astype(jnp.bfloat16))
        assert rounded < 0.05, jax.tree_util.keystr(path)
