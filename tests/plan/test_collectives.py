"""Collectives of compiled programs whose messages are known, and of texts of other chips."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.plan.hlo import Part
from tests.plan.collectives import read_collectives
from tests.plan.purposes import Shapes, by_purpose, squeeze


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


def test_an_all_reduce_of_own_shares_is_a_gather():
    def place(share, weights):
        own = jax.lax.axis_index("data") * len(share)
        whole = jax.lax.dynamic_update_slice(jnp.zeros((16, 4)), share, (own, 0))
        # Each device has its own sum of the gradient, not a share of the whole.
        return jax.lax.psum((whole, weights * share.sum()), "data")

    def both(x, weights):
        return jax.shard_map(place, in_specs=(P("data"), P()), out_specs=P())(x, weights)

    text = compiled_text(both, (16, 4), (16, 8), spec=P())
    found = {c.gathers: c for c in read_collectives(text)}
    assert found[True].parts == (Part("f32", (16, 4)),)
    assert found[False].parts == (Part("f32", (16, 8)),)
    assert found[True].wire_bytes == 2 * 16 * 4 * 4  # twice what an all-gather sends
    shapes = Shapes(frozenset({squeeze((16, 4)), squeeze((16, 8))}))
    assert list(by_purpose(found[True], shapes)) == ["weights"]
    assert list(by_purpose(found[False], shapes)) == ["gradients"]


@pytest.mark.parametrize(
    ("axes", "groups", "rate"),
    [
        ("fsdp", {(0, 1, 2, 3), (4, 5, 6, 7)}, 100),  # inside a machine
        ("data", {(0, 4), (1, 5), (2, 6), (3, 7)}, 10),  # each device by its own card
        (("data", "fsdp"), {tuple(range(8))}, 40),  # four rings, four cards
    ],
)
def test_who_exchanges_with_whom_and_how_fast(axes, groups, rate):
    mesh = make_mesh(2, 4)

    def total(x):
        return jax.shard_map(lambda s: jax.lax.psum(s, axes), in_specs=P(), out_specs=P())(x)

    with jax.set_mesh(mesh):
        text = jax.jit(total).lower(jnp.zeros(5)).compile().as_text()
    (found,) = read_collectives(text)
    assert {tuple(sorted(group)) for group in found.groups or (range(8),)} == groups
    machines = (0, 0, 0, 0, 1, 1, 1, 1)
    assert found.seconds(machines, link=100.0, network=10.0) == pytest.approx(2 * 5 * 4 / rate)
    assert found.seconds(machines, link=1e9) == 2 * 5 * 4 / 1e9  # one torus


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, to_apply=%add", ((0, 2), (1, 3))),
        ("replica_groups=[2,3]<=[6], dimensions={0}", ((0, 1, 2), (3, 4, 5))),
        ("replica_groups=[3,2]<=[2,3]T(1,0), dimensions={0}", ((0, 3), (1, 4), (2, 5))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, channel_id=1", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'a','b'}", ((0, 2), (1, 3))),
        (
            "replica_groups=mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'b'}, to_apply=%add",
            ((0, 3), (1, 4), (2, 5)),
        ),
        ("source_target_pairs={{0,1},{1,0}}, channel_id=3", ((0, 1), (1, 0))),
        ("replica_groups={}, to_apply=%add", ()),
    ],
)
def test_groups_as_they_are_written(text, groups):
    hlo = f"ENTRY %main (x: f32[4]) -> f32[4] {{\n  %y = f32[4]{{0}} all-reduce(%x), {text}\n}}\n"
    (found,) = read_collectives(hlo)
    assert found.groups == groups


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


# As a TPU's compiler gathers over all of 128 chips, in one message with a gradient.
BY_ALL_REDUCE = """
HloModule jit_step, is_scheduled=true

%fused (z: bf16[1,8192,1536], i: u32[], w: bf16[4,64,1536], l: s32[]) -> (s32[], bf16[1,8192,1536]) {
  %z = bf16[1,8192,1536]{2,1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[4,64,1536]{2,1,0:T(8,128)(2,1)} parameter(2)
  %l = s32[]{:T(128)S(6)} parameter(3)
  %c = u32[]{:T(128)} constant(0)
  %share = bf16[1,64,1536]{2,1,0:T(8,128)(2,1)} dynamic-slice(%w, %l, %c, %c)
  %i = u32[]{:T(128)S(6)} parameter(1)
  %whole = bf16[1,8192,1536]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%z, %share, %c, %i, %c)
  ROOT %two = (s32[], bf16[1,8192,1536]{2,1,0:T(8,128)(2,1)}) tuple(%l, %whole)
}

%body (t: (s32[], bf16[4,64,1536], u32[])) -> (s32[], bf16[4,64,1536], u32[]) {
  %t = (s32[], bf16[4,64,1536]{2,1,0}, u32[]) parameter(0)
  %turn = s32[] get-tuple-element(%t), index=0
  %stack = bf16[4,64,1536]{2,1,0} get-tuple-element(%t), index=1
  %own = u32[]{:T(128)S(6)} get-tuple-element(%t), index=2
  %zero = bf16[]{:T(256)} constant(0)
  %zeros = bf16[1,8192,1536]{2,1,0} broadcast(%zero), dimensions={}
  %placed = (s32[], bf16[1,8192,1536]{2,1,0}) fusion(%zeros, %own, %stack, %turn), calls=%fused
  %share.1 = bf16[1,8192,1536]{2,1,0} get-tuple-element(%placed), index=1
  %moved = (bf16[1,8192,1536]{2,1,0S(1)}, bf16[1,8192,1536]{2,1,0}, u32[]) copy-start(%share.1)
  %here = bf16[1,8192,1536]{2,1,0S(1)} copy-done(%moved)
  %column = bf16[8192,1536]{1,0} dynamic-update-slice(%sum, %part, %turn, %turn)
  %both = (bf16[1,8192,1536]{2,1,0}, bf16[8192,1536]{1,0}) all-reduce(%here, %column), to_apply=%add
  ROOT %next = (s32[], bf16[4,64,1536], u32[]) tuple(%turn, %stack, %own)
}

ENTRY %main (w: bf16[4,64,1536]) -> bf16[4,64,1536] {
  %w = bf16[4,64,1536]{2,1,0} parameter(0)
  %first = s32[] constant(0)
  %width = u32[] constant(64)
  %device = u32[] partition-id()
  %start = u32[] multiply(%device, %width)
  %init = (s32[], bf16[4,64,1536]{2,1,0}, u32[]) tuple(%first, %w, %start)
  %loop = (s32[], bf16[4,64,1536], u32[]) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
  ROOT %out = bf16[4,64,1536] get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_weights_that_a_tpu_gathers_by_all_reduce():
    gather, sum_of = read_collectives(BY_ALL_REDUCE)
    whole = 8192 * 1536 * 2
    assert (gather.kind, gather.gathers, gather.times) == ("all-reduce", True, 4)
    assert gather.wire_bytes == sum_of.wire_bytes == 4 * 2 * whole
    assert (sum_of.kind, sum_of.gathers) == ("all-reduce", False)  # placed by the turn of the loop
    shapes = Shapes(frozenset({squeeze((8192, 1536))}))
    assert list(by_purpose(gather, shapes)) == ["weights"]
    assert list(by_purpose(sum_of, shapes)) == ["gradients"]


# As a TPU's compiler writes a gather that goes on during two products, and a ring of eight shares
# that are passed on in both directions, two of each in a turn.
PASSED_ON = """
HloModule jit_step, is_scheduled=true

%first (w: bf16[8,16]) -> (bf16[8,16], bf16[64,16], u32[]) {
  %w = bf16[8,16]{1,0} parameter(0)
  %all-gather.1 = bf16[64,16]{1,0} all-gather(%w), channel_id=7, dimensions={0}
  ROOT %started = (bf16[8,16], bf16[64,16], u32[]) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%beside (w: bf16[8,16], whole: bf16[64,16], x: f32[4]) -> (f32[4], bf16[8,16], bf16[64,16]) {
  %w = bf16[8,16]{1,0} parameter(0)
  %whole = bf16[64,16]{1,0} parameter(1)
  %x = f32[4]{0} parameter(2)
  %all-gather.2 = bf16[64,16]{1,0} all-gather(%w), channel_id=7, dimensions={0}
  ROOT %both = (f32[4], bf16[8,16], bf16[64,16]) tuple(%x, %w, %all-gather.2)
}

%last (w: bf16[8,16], whole: bf16[64,16]) -> bf16[64,16] {
  %w = bf16[8,16]{1,0} parameter(0)
  %whole = bf16[64,16]{1,0} parameter(1)
  %all-gather.3 = bf16[64,16]{1,0} all-gather(%w), channel_id=7, dimensions={0}
  ROOT %done = bf16[64,16] custom-call(%w, %whole, %all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}

%before (t: (bf16[8,16], u32[])) -> pred[] {
  %t = (bf16[8,16]{1,0}, u32[]) parameter(0)
  %bound = u32[]{:T(128)} constant(4)
  %turn = u32[]{:T(128)} get-tuple-element(%t), index=1
  ROOT %less = pred[]{:T(512)} compare(%turn, %bound), direction=LT
}

%ring (t: (bf16[8,16], u32[])) -> (bf16[8,16], u32[]) {
  %t = (bf16[8,16]{1,0}, u32[]) parameter(0)
  %share = bf16[8,16]{1,0} get-tuple-element(%t), index=0
  %turn = u32[]{:T(128)} get-tuple-element(%t), index=1
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%turn, %two)
  %left = bf16[8,16]{1,0} collective-permute(%share), channel_id=1, source_target_pairs={{0,1}}
  %right = bf16[8,16]{1,0} collective-permute(%share), channel_id=2, source_target_pairs={{1,0}}
  %again = bf16[8,16]{1,0} collective-permute(%left), channel_id=3, source_target_pairs={{0,1}}
  %back = bf16[8,16]{1,0} collective-permute(%right), channel_id=4, source_target_pairs={{1,0}}
  ROOT %carried = (bf16[8,16]{1,0}, u32[]) tuple(%again, %next)
}

ENTRY %main (w: bf16[8,16], x: f32[4]) -> bf16[64,16] {
  %w = bf16[8,16]{1,0} parameter(0)
  %x = f32[4]{0} parameter(1)
  %start = (bf16[8,16], bf16[64,16], u32[]) fusion(%w), kind=kCustom, calls=%first
  %p1 = (f32[4], bf16[8,16], bf16[64,16]) fusion(%w, %g, %x), kind=kOutput, calls=%beside
  %p2 = (f32[4], bf16[8,16], bf16[64,16]) fusion(%w, %g, %x), kind=kOutput, calls=%beside
  %whole = bf16[64,16]{1,0} fusion(%w, %g), kind=kCustom, calls=%last
  %zero = u32[] constant(0)
  %init = (bf16[8,16], u32[]) tuple(%w, %zero)
  ROOT %loop = (bf16[8,16], u32[]) while(%init), condition=%before, body=%ring
}
"""


def test_what_is_passed_on_counts_once():
    gather, *ring = read_collectives(PASSED_ON)
    assert (gather.kind, gather.times, gather.wire_bytes) == ("all-gather", 1, 64 * 16 * 2)
    # The bound is 4 and 2 are added, so two turns of four shares: what a gather would send.
    assert [(c.kind, c.times) for c in ring] == [("collective-permute", 2)] * 4
    assert sum(c.wire_bytes for c in ring) == 64 * 16 * 2
