"""What the devices of a mesh send to each other in a training step, and what never travels.

A device has 17 to 68 tokens and blocks of width 256: by itself XLA would rather move the tokens
than the weights.
"""

import functools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from dinov2_jax.parallel.mesh import MIN_SHARD_BYTES, make_mesh, state_shardings
from dinov2_jax.train.setup import abstract_batch, compiled_step, make_run
from tests.plan.collectives import Collective, read_collectives
from tests.plan.purposes import Shapes, by_purpose, squeeze, step_shapes
from tests.train.tiny import tiny_config

DIM, DEPTH, GROUPS = 256, 2, 8
# Tokens of a group: two crops of 16 patches and cls; a branch of the student keeps one of them.
TEACHER, STUDENT = 34, 17
LEAST = 2**16  # bytes: the four matrices of a block and the patch projection are split
# Fewer elements are vectors, sums over prototypes, and scores of a few rows.
LARGE = 4096
# The matrices of a block, and which of them are packed; 688 is `swiglu_hidden_dim` of 256.
MATRICES = {
    "mlp": {"qkv": (DIM, 3 * DIM), "proj": (DIM, DIM), "fc1": (DIM, 1024), "fc2": (1024, DIM)},
    "swiglu": {"qkv": (DIM, 3 * DIM), "proj": (DIM, DIM), "w12": (DIM, 1376), "w3": (688, DIM)},
}
PACKED = ("qkv", "w12")


def few_tokens(data: int, fsdp: int, tensor: int, ffn: str):
    changes = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor, "model.ffn": ffn}
    return tiny_config(
        **changes,
        **{
            "batch_size": GROUPS,
            "group_size": 1,
            "dino.koleo_loss_weight": 0.0,
            "crops.local_number": 0,
            "centering": "centering",
            "min_shard_bytes": LEAST,
            "model.dim": DIM,
            "model.heads": 4,
            "model.blocks": "unroll",
        },
    )


@functools.cache
def messages(*sizes: int, ffn: str = "mlp") -> tuple[list[Collective], Shapes, int]:
    """The collectives of a step, the shapes of its weights, and how many weights there are."""
    config = few_tokens(*sizes, ffn)
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    run = make_run(config, mesh)
    program = compiled_step(run, abstract_batch(config, mesh), mesh)
    weights = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state.student))
    return read_collectives(program.as_text()), step_shapes(run, config), weights


def large(*sizes: int, purpose: str, ffn: str = "mlp") -> Counter[tuple[str, tuple[int, ...]]]:
    """How often each large array of a purpose travels in a step, by its kind and shape."""
    found, shapes, _ = messages(*sizes, ffn=ffn)
    counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for collective in found:
        split = by_purpose(collective, shapes)
        for part in split[purpose].parts if purpose in split else ():
            if math.prod(part.shape) >= LARGE:
                counts[collective.kind, squeeze(part.shape)] += collective.times
    return counts


def sums_of_tokens(groups: int) -> dict[tuple[str, tuple[int, ...]], int]:
    """After the attention and after the MLP, and both again backward; of the groups of a device."""
    return {
        ("all-reduce", squeeze((groups, TEACHER, DIM))): 2 * DEPTH,
        ("all-reduce", squeeze((groups, STUDENT, DIM))): 4 * DEPTH,
    }


def moved_elements(counts: Counter[tuple[str, tuple[int, ...]]], kind: str) -> int:
    return sum(n * math.prod(shape) for (own, shape), n in counts.items() if own == kind)


def test_data_parallelism_sums_each_gradient_once():
    found, shapes, weights = messages(8, 1, 1)
    assert {collective.kind for collective in found} == {"all-reduce"}
    assert not large(8, 1, 1, purpose="activations")
    split = [by_purpose(collective, shapes).get("gradients") for collective in found]
    elements = sum(c.times * math.prod(p.shape) for c in split if c for p in c.parts)
    # The covariance of the features, [D, D], is among them: a diagnostic.
    assert weights <= elements <= 1.01 * (weights + DIM * DIM)


def test_fsdp_moves_weights_and_gradients_alone():
    found, _, _ = messages(1, 8, 1)
    assert {c.kind for c in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert not large(1, 8, 1, purpose="activations")
    gathered = large(1, 8, 1, purpose="weights")
    matrices = Counter(squeeze(shape) for shape in MATRICES["mlp"].values())
    patches = squeeze((DIM, 3 * 7 * 7))
    assert {shape for _, shape in gathered} == {*matrices, patches}
    for shape, count in matrices.items():
        # By the teacher, the student and, where it does not keep them, its backward pass.
        passes = gathered["all-gather", shape] / (count * DEPTH)
        assert 2 <= passes <= 3, (shape, passes)


def test_tensor_parallelism_sums_tokens_twice_a_block_and_pass():
    assert large(1, 1, 2, purpose="activations") == sums_of_tokens(GROUPS)
    weights = large(1, 1, 2, purpose="weights")
    assert {kind for kind, _ in weights} == {"all-to-all"}
    # A device's half of the rows of qkv: by the teacher, the student and its gradient.
    assert moved_elements(weights, "all-to-all") == 3 * DEPTH * 3 * DIM * DIM // 2


def test_all_axes_send_the_sum_of_each():
    ffn = "swiglu"  # two packed kernels a block
    found, _, _ = messages(2, 2, 2, ffn=ffn)
    assert large(2, 2, 2, purpose="activations", ffn=ffn) == sums_of_tokens(GROUPS // 4)
    weights = large(2, 2, 2, purpose="weights", ffn=ffn)
    assert {kind for kind, _ in weights} <= {"all-gather", "all-to-all"}
    # A share of a packed kernel is a quarter; what FSDP gathers is the half of every matrix.
    packed = sum(math.prod(MATRICES[ffn][name]) for name in PACKED if name in MATRICES[ffn])
    assert moved_elements(weights, "all-to-all") == 3 * DEPTH * packed // 4
    halves = DEPTH * sum(math.prod(shape) for shape in MATRICES[ffn].values()) // 2
    patches = 2 * DIM * 3 * 7 * 7
    assert 2 * halves <= moved_elements(weights, "all-gather") - patches <= 3 * halves
    # XLA passes shares of the patch projection on, and of vectors.
    permuted = [c for c in found if c.kind == "collective-permute"]
    assert all(math.prod(p.shape) <= DIM * 3 * 7 * 7 for c in permuted for p in c.parts)


def placed(path: str, *shape: int, mesh: tuple[int, int, int], **options: int) -> P:
    *parents, name = path.split("/")
    tree = functools.reduce(
        lambda inner, key: {key: inner},
        reversed(parents),
        {name: jax.ShapeDtypeStruct(shape, jnp.float32)},
    )
    return jax.tree.leaves(state_shardings(tree, make_mesh(*mesh), **options))[0].spec


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        # 24 blocks together are 6 MB, and one of them 256 KB.
        ("student/backbone/blocks/attn/proj/kernel", (24, 256, 256), P(None, None, None)),
        ("student/backbone/blocks/attn/proj/kernel", (24, 512, 512), P(None, "fsdp", None)),
        ("student/backbone/blocks/0/attn/proj/kernel", (512, 512), P("fsdp", None)),
        ("student/backbone/blocks/norm1/scale", (24, 1024), P(None, None)),
        ("student/dino_head/mlp_0/kernel", (256, 1024), P(None, "fsdp")),
        ("student/dino_head/mlp_0/kernel", (256, 1016), P(None, None)),
    ],
)
def test_small_weights_stay_whole(path, shape, spec):
    assert MIN_SHARD_BYTES == 2**20
    assert placed(path, *shape, mesh=(1, 8, 1)) == spec


def test_packed_kernels_are_stored_by_rows():
    path = "student/backbone/blocks/attn/qkv/kernel"
    rows = P(None, ("fsdp", "tensor"), None)
    assert placed(path, 12, 384, 1152, mesh=(1, 4, 2)) == rows
    assert placed(path, 12, 64, 192, mesh=(1, 4, 2)) == rows  # they change hands anyway
    assert placed(path, 12, 12, 36, mesh=(1, 4, 2)) == P(None, "tensor", None)
    assert placed(path, 12, 384, 1152, mesh=(1, 8, 1)) == P(None, None, "fsdp")
