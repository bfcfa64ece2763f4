"""The same training on one device, data parallel, FSDP and both; what is communicated.

With a tensor axis and everything else on: test_processes.py. Every message: test_mesh_messages.py.
"""

import re

import jax
import numpy as np
import pytest

from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
from dinov2_jax.train.setup import make_run
from tests.train.tiny import random_batch, tiny_config, train_steps

MESHES = {"8x1": (8, 1), "1x8": (1, 8), "2x4": (2, 4)}
LOSSES = ("loss", "loss/dino_global", "loss/dino_local", "loss/koleo", "loss/ibot")


def three_steps(*mesh: int, **changes) -> list[dict[str, float]]:
    return train_steps(tiny_config(**changes), 3, mesh)[0]


@pytest.fixture(scope="module")
def single():
    return three_steps(1, 1)


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_do_not_depend_on_the_mesh(single, mesh):
    for step, (got, want) in enumerate(zip(three_steps(*MESHES[mesh]), single, strict=True)):
        for name in LOSSES:
            assert got[name] == pytest.approx(want[name], rel=1e-5), (step, name)


def test_losses_do_not_depend_on_who_has_which_heads():
    """Packed q, k, v and packed gate and value, split over two devices and over FSDP."""
    changes = {"model.heads": 4, "model.ffn": "swiglu"}
    want = three_steps(1, 1, **changes)
    for step, (got, row) in enumerate(zip(three_steps(2, 2, 2, **changes), want, strict=True)):
        for name in LOSSES:
            assert got[name] == pytest.approx(row[name], rel=1e-5), (step, name)


@pytest.mark.parametrize("block", [0, 256])
def test_prototypes_stay_on_their_devices(block):
    """With a tensor axis each device scores its own part of the prototypes: none are gathered."""
    prototypes = 1024
    config = tiny_config(prototype_block=block, **{"dino.head_prototypes": prototypes})
    mesh = make_mesh(4, 1, 2)
    run = make_run(config, mesh)
    last_layer = run.abstract_state.teacher["dino_head"]["last_layer"]["weight_v"]
    assert last_layer.sharding.shard_shape(last_layer.shape) == (prototypes // 2, 16)
    with jax.set_mesh(mesh):
        batch = put_batch(random_batch(config, 0), mesh)
        step = run.step.lower(run.abstract_state, batch, run.schedules.at(0)).compile()
    program = step.as_text()
    moved = [
        shape
        for kind in ("all-gather", "all-to-all", "collective-permute")
        for shape in collectives(program, kind)
        if {prototypes, prototypes // 2, 256, 128} & {*shape}  # all, a share, a block, its share
    ]
    assert not moved


@pytest.fixture(scope="module")
def one_group():
    """All 16 images are one statistical group."""
    return three_steps(1, 1, group_size=16)


def test_groups_matter(single, one_group):
    """The group size is part of the method: KoLeo and stochastic depth look at it."""
    assert one_group[0]["loss"] != pytest.approx(single[0]["loss"], rel=1e-4)


def test_a_group_may_span_devices(one_group):
    """It costs messages, not accuracy."""
    for got, want in zip(three_steps(8, 1, group_size=16), one_group, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)


def collectives(program: str, kind: str) -> list[tuple[int, ...]]:
    """Shapes of all results of one kind of collective in a compiled program."""
    found = re.findall(rf"= \(?((?:\w+\[[\d,]*\]\S*(?:, )?)+)\)? {kind}(?:-start)?\(", program)
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(found))
    return [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]


def test_fsdp_gathers_weights_only():
    config = tiny_config(batch_size=40, group_size=5)
    mesh = make_mesh(1, 8)
    run = make_run(config, mesh)
    with jax.set_mesh(mesh):
        batch = put_batch(random_batch(config, 0), mesh)
        step = run.step.lower(run.abstract_state, batch, run.schedules.at(0)).compile()
    weights = {leaf.shape for leaf in jax.tree.leaves(run.abstract_state.student)}
    # A block's slice of a stacked weight, with or without the axis of length 1.
    weights |= {shape[1:] for shape in weights} | {(1, *shape[1:]) for shape in weights}
    sizes = {int(np.prod(shape)) for shape in weights}
    # 80 global and 120 local crops: no activation has the size of a weight.
    heads = {crops * width for crops in (80, 120) for width in (48, 32, 16, 64)}
    assert not sizes & heads
    gathered = collectives(step.as_text(), "all-gather")
    assert gathered, "FSDP must gather its weights"
    activations = [s for s in gathered if len(s) > 3 or int(np.prod(s)) not in sizes]
    assert not activations
    assert len(gathered) >= 4


def test_state_is_sharded_alike():
    run = make_run(tiny_config(), make_mesh(1, 8))
    state = run.abstract_state
    moments = state.opt_state
    for other in (state.teacher, moments.mu, moments.nu):
        same = jax.tree.map(lambda a, b: a.sharding == b.sharding, state.student, other)
        assert all(jax.tree.leaves(same))
    kernel = state.student["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 48, 192 // 8)
