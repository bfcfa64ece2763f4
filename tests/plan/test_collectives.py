"""Collectives of compiled programs whose messages are known, and of texts of other chips."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.plan.collectives import Collective, Part, purpose, read_collectives, squeeze
from dinov2_jax.sharding import make_mesh


def compiled_text(function, *shapes, spec):
    """HLO of `function` on 8 devices; inputs are placed by `spec`."""
    mesh = make_mesh(8)
    inputs = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape in shapes
    ]
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*inputs).compile().as_text()


def summed(x):
    """The sum over all devices of each device's rows."""
    return jax.shard_map(lambda s: jax.lax.psum(s, "data"), in_specs=P("data"), out_specs=P())(x)


def test_a_sum_over_devices():
    (found,) = read_collectives(compiled_text(summed, (16, 4), spec=P("data")))
    assert (found.kind, found.times) == ("all-reduce", 1)
    assert found.parts == (Part("f32", (2, 4)),)
    assert found.wire_bytes == 2 * 2 * 4 * 4  # a ring reduces, then gathers


def test_a_gather_has_the_size_of_its_result():
    def gather(x):
        return jax.lax.with_sharding_constraint(x, P()) * 2

    (found,) = read_collectives(compiled_text(gather, (16, 4), spec=P("data")))
    assert (found.kind, found.times, found.wire_bytes) == ("all-gather", 1, 16 * 4 * 4)


@pytest.mark.parametrize(("outer", "inner"), [(7, 1), (3, 4)])
def test_a_loop_counts_as_often_as_it_runs(outer, inner):
    def body(carry, _):
        # What each turn sums depends on the last, so no turn can be moved out of the loop.
        return jnp.sin(carry + summed(jnp.tile(carry, (8, 1)))), None

    def turn(carry, _):
        return jax.lax.scan(body, carry, None, length=inner)[0] * 0.5, None

    text = compiled_text(lambda x: jax.lax.scan(turn, x, None, length=outer)[0], (2, 4), spec=P())
    found = [c for c in read_collectives(text) if c.kind == "all-reduce"]
    assert sum(c.times for c in found) == outer * inner
    assert all(c.parts == (Part("f32", (2, 4)),) for c in found)


# The forms in which TPU and GPU compilers write what the CPU's does not.
ELSEWHERE = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%scatter.1 (p: f32[64,8], i: s32[]) -> f32[8,8] {
  %p = f32[64,8]{1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %all-reduce.3 = f32[64,8]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
  ROOT %slice = f32[8,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.3, %i)
}

%condition (t: (s32[], bf16[8,4])) -> pred[] {
  %turns = s32[]{:T(128)} constant(24)
  ROOT %less = pred[]{:T(512)} compare(%t.0, %turns), direction=LT
}

%body (t: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %start = (bf16[8,4]{1,0:T(8,128)(2,1)}, bf16[64,4]{1,0:T(8,128)(2,1)S(1)}) \
all-gather-start(%x), dimensions={0}, metadata={op_name="jit(step)/while/body/qkv"}
  %done = bf16[64,4]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%start)
  ROOT %next = (s32[], bf16[8,4]) tuple(%n, %x)
}

ENTRY %main (g: f32[64,8], x: bf16[8,4]) -> f32[8,8] {
  %g = f32[64,8]{1,0:T(8,128)} parameter(0)
  %loop = (s32[], bf16[8,4]) while(%init), condition=%condition, body=%body
  %two = (f32[64]{0}, /*index=1*/f32[]) all-reduce-start(%norm, %loss), to_apply=%add
  %scattered = f32[8,8]{1,0} reduce-scatter(%g), dimensions={0}, to_apply=%add
  ROOT %fused = f32[8,8]{1,0} fusion(%g, %i), kind=kCustom, calls=%scatter.1
}
"""


def test_the_forms_of_tpu_and_gpu():
    gather, both, scattered, fused = read_collectives(ELSEWHERE)
    # 24 turns by the condition: this compiler wrote no trip count. bf16: 2 bytes.
    assert (gather.kind, gather.times) == ("all-gather", 24)
    assert gather.parts == (Part("bf16", (64, 4)),)
    assert gather.wire_bytes == 24 * 64 * 4 * 2
    assert gather.op_name.endswith("/qkv")
    assert (both.kind, both.parts) == ("all-reduce", (Part("f32", (64,)), Part("f32", ())))
    # What is reduced is the whole array, not the share that is kept; no second pass of the ring.
    assert (scattered.kind, scattered.wire_bytes) == ("reduce-scatter", 64 * 8 * 4)
    assert (fused.kind, fused.wire_bytes) == ("reduce-scatter", 64 * 8 * 4)


@pytest.mark.parametrize(
    ("kind", "shape", "meaning"),
    [
        ("all-gather", (144, 48), "weights"),
        ("all-gather", (1, 48, 144), "weights"),
        ("all-gather", (4, 12, 144), "weights"),
        ("collective-permute", (48, 144), "weights"),
        ("reduce-scatter", (48, 144), "gradients"),
        ("reduce-scatter", (64, 144), "gradients"),  # a TPU pads shares to tiles
        ("all-reduce", (64, 144), "activations"),
        ("all-reduce", (64,), "statistics"),
        ("all-reduce", (48 * 144 + 48,), "gradients"),  # a GPU packs them
        ("all-reduce", (), "statistics"),
        ("all-gather", (40, 17, 48), "activations"),
        ("all-to-all", (5, 48), "activations"),
    ],
)
def test_purposes(kind, shape, meaning):
    weights = {squeeze((48, 144)), (144,)}
    assert purpose(Collective(kind, (Part("f32", shape),), 1, ""), weights) == meaning
