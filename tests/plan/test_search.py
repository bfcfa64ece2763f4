"""What a plan tries when the configured setting does not fit, by arithmetic on toy trials."""

import dataclasses

import jax
import pytest

from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.plan.search import (
    fewer_at_a_time,
    images_that_fit,
    leaner_settings,
    leaner_total,
    next_changes,
    search,
    smaller_batch,
)
from dinov2_jax.plan.text import outcome, setting_line, summary
from dinov2_jax.plan.topology import Target
from dinov2_jax.plan.trial import ScoreBytes, score_bytes, try_setting
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.setup import abstract_batch
from tests.plan.toy import CHIP, plan_config, toy_trial

SHARDED = (1, 8, 1)
FLOPS = {"model": 1e9, "executed": 1e9}
TARGET = Target("toy", jax.devices(), CHIP)


def remat_config(**changes):
    """64 images in 32 groups, four on each of eight devices."""
    return plan_config(**{"model.remat": "blocks", "group_size": 2, "batch_size": 64} | changes)


def test_full_sharding_first_where_it_is_enough():
    config = plan_config(**{"mesh.data": 8, "mesh.fsdp": 1})
    # 1,100 of 1,000 bytes; of the state's 200 an eighth would remain: 925.
    changes = next_changes(config, toy_trial(1100), 1000, 8)
    assert changes == {"mesh.data": 1, "mesh.fsdp": 8}
    # 1,300 - 175 would still be too much: recompute, and shard only then.
    assert "mesh.fsdp" not in (next_changes(config, toy_trial(1300), 1000, 8) or {})
    for remat in ("pointwise", "blocks"):
        again = toy_trial(1050, **{"model.remat": remat})
        assert next_changes(config, again, 1000, 8) == {
            "model.remat": remat,
            "mesh.data": 1,
            "mesh.fsdp": 8,
        }


def test_what_is_cheap_is_recomputed_first_where_that_can_be_enough():
    config = plan_config(**{"mesh.data": 8, "mesh.fsdp": 1})
    # 25 of state, sharded, and of 2,300 bytes of temporaries 40 %: 945.
    assert next_changes(config, toy_trial(2500), 1000, 8) == {"model.remat": "pointwise"}
    assert next_changes(config, toy_trial(2700), 1000, 8) == {"model.remat": "blocks"}
    assert next_changes(config, toy_trial(None), 1000, 8) == {"model.remat": "blocks"}
    # It was not enough, with full sharding neither: the whole blocks.
    again = toy_trial(1300, **{"model.remat": "pointwise"})
    assert next_changes(config, again, 1000, 8) == {"model.remat": "blocks"}
    config.model.remat = "pointwise"
    assert next_changes(config, toy_trial(1300), 1000, 8) == {"model.remat": "blocks"}


def test_then_as_many_micro_batches_as_are_expected_to_be_enough():
    config = remat_config()
    # 100 of state, 100 of gradients and as much for their sum; 1,300 of 64 images in 4 groups: in
    # two parts 950.
    last = toy_trial(1500, state=100, mesh=SHARDED)
    assert next_changes(config, last, 1000, 8) == {"micro_batches": 2}
    assert next_changes(config, last, 900, 8) == {"micro_batches": 4}
    # In four parts 625: expected not to fit, but tried before the recipe is changed.
    assert next_changes(config, last, 600, 8) == {"micro_batches": 4}
    # Two did not do it: their 900 of images are halved once more, and the sum is there already.
    again = toy_trial(1100, state=100, mesh=SHARDED, micro_batches=2)
    assert leaner_total(again, 4, 0) == 650
    assert next_changes(config, again, 1000, 8) == {"micro_batches": 4}
    assert next_changes(config, toy_trial(None, mesh=SHARDED), 1000, 8) == {"micro_batches": 4}


@pytest.mark.parametrize(("batch", "parts"), [(64, [2, 4]), (96, [2, 3, 6]), (16, []), (40, [])])
def test_micro_batches_are_those_that_the_checks_allow(batch, parts):
    config = remat_config(batch_size=batch)
    found = [n for n, _ in leaner_settings(config, toy_trial(2000, batch=batch, mesh=SHARDED))]
    assert found == parts
    for micro_batches in parts:
        config.micro_batches = micro_batches
        check_training(config, device_count=8)


HEADS = {"dino.head_prototypes": 65536, "ibot.head_prototypes": 36864}


@pytest.mark.parametrize(
    ("heads", "block"),
    [
        ({}, 0),  # 64 prototypes are one block
        (HEADS, 8192),
        (HEADS | {"ibot.separate_head": True}, 4096),
        ({"dino.head_prototypes": 60000}, 7500),
        ({"dino.head_prototypes": 65537}, 0),  # a prime
    ],
)
def test_blocks_divide_the_prototypes_of_all_heads(heads, block):
    config = remat_config(**heads)
    last = toy_trial(2000, batch=16, mesh=SHARDED)
    assert leaner_settings(config, last) == ([(1, block)] if block else [])
    config.prototype_block = block
    check_training(config, device_count=8)


def test_blocks_of_prototypes_where_micro_batches_are_not_enough():
    config = remat_config(**HEADS)
    # Scores are 1,000 of 1,500: four parts would leave 400 of targets, 300 of state, gradients
    # and their sum, and 225 of the rest.
    last = toy_trial(1500, state=100, mesh=SHARDED, scores=(400, 600))
    assert fewer_at_a_time(config, last, 950) == {"micro_batches": 4}
    assert fewer_at_a_time(config, last, 700) == {"prototype_block": 8192}  # 500, in one part
    # Both, if it must be; and only what is left of either.
    assert fewer_at_a_time(config, last, 400) == {"micro_batches": 4, "prototype_block": 8192}
    again = toy_trial(1500, state=100, mesh=SHARDED, scores=(400, 600), micro_batches=4)
    assert next_changes(config, again, 700, 8) == {"micro_batches": 4, "prototype_block": 8192}
    blocked = toy_trial(700, state=100, mesh=SHARDED, prototype_block=8192)
    assert fewer_at_a_time(config, blocked, 600) == {"micro_batches": 2}


def test_scores_by_arithmetic():
    config = remat_config(
        **{"ibot.separate_head": True, "ibot.head_prototypes": 32, "micro_batches": 2}
    )
    mesh = make_mesh(1, 8)
    batch = abstract_batch(config, mesh)
    slots = batch["mask_indices"].shape[1]
    # 8 images on each device, 2 global and 3 local crops, 64 and 32 prototypes, 4 groups of slots.
    targets = 4 * (8 * 2 * 64 + 4 * slots * 32)
    logits = 4 * (8 * 5 * 64 + 4 * slots * 32)
    assert score_bytes(config, batch, mesh) == ScoreBytes(targets, 2 * logits // 2)
    config.prototype_block = 16
    assert score_bytes(config, batch, mesh) == ScoreBytes(0, 0)


def test_at_last_the_batch_that_the_bytes_an_image_allow():
    config = remat_config()
    # 56 images are 3.5 groups of 2 a device, so there are no micro-batches; 25 bytes of state,
    # 1,750 of images: 250 an image, 3.9 fit.
    last = toy_trial(1775, state=25, batch=56, mesh=SHARDED)
    assert images_that_fit(last, 1000) == pytest.approx(3.9)
    assert next_changes(config, last, 1000, 8) == {"batch_size": 16}  # whole groups on 8 devices
    # One group a device is tried whatever the estimate; after that nothing is left.
    hopeless = toy_trial(50_000, state=25, batch=56, mesh=SHARDED)
    assert smaller_batch(config, hopeless, 1000) == {"batch_size": 16}
    assert next_changes(config, toy_trial(1200, batch=16, mesh=SHARDED), 1000, 8) is None
    # A compiler that names no size: half, 28 images, and of them whole groups.
    unknown = toy_trial(None, batch=56, mesh=SHARDED)
    assert smaller_batch(config, unknown, 1000) == {"batch_size": 16}


def test_one_group_a_device_without_accumulation_is_the_end():
    config = remat_config()
    last = toy_trial(1100, state=25, mesh=SHARDED, micro_batches=4)
    changes = next_changes(config, last, 1000, 8)
    assert changes == {"batch_size": 16, "micro_batches": 1}
    assert next_changes(config, toy_trial(1050, batch=16, mesh=SHARDED), 1000, 8) is None


def test_what_the_arithmetic_expects_is_what_the_compiler_finds():
    config = remat_config(**{"mesh.fsdp": 1, "batch_size": 16, "crops.local_number": 0})
    device = Target("toy", jax.devices()[:1], None)
    first = try_setting(config, device)
    assert first.memory is not None
    chip = dataclasses.replace(CHIP, usable_bytes=0.85 * first.memory.total)
    target = dataclasses.replace(device, chip=chip)
    (found,) = search(config, target, first, most=1)
    assert found.changes == {"micro_batches": 2} and found.fits and found.memory is not None
    assert found.memory.total == pytest.approx(leaner_total(first, 2, 0), rel=0.2)
    assert "micro_batches 2, prototype_block 0, remat blocks" in setting_line(config, found)
    advice = "\n".join(outcome(config, target, [first, found], FLOPS))
    assert "fits with --config.micro_batches=2\n(micro-batches, one after the other" in advice
    assert summary(config, target, found, FLOPS)["micro_batches"] == 2


@pytest.mark.parametrize(
    ("remat", "cost"), [("pointwise", "norms, activations"), ("blocks", "quarter")]
)
def test_what_recomputation_costs_is_said(remat, cost):
    last = toy_trial(900, mesh=SHARDED, fits=True, **{"model.remat": remat})
    assert cost in "\n".join(outcome(plan_config(), TARGET, [toy_trial(1200), last], FLOPS))


def test_a_search_that_finds_nothing_says_how_many_chips_would_do():
    config = remat_config()
    last = toy_trial(2025, state=25, batch=16, mesh=SHARDED)
    (line,) = outcome(config, TARGET, [last], FLOPS)
    # 2 images on each device need 2,000 bytes: 0.975 fit.
    assert "not one image a chip" in line
    last = toy_trial(1225, state=25, batch=16, mesh=SHARDED)
    (line,) = outcome(config, TARGET, [last], FLOPS)
    assert "1.6 images a chip" in line and "40 chips for a batch of 64" in line
    config.plan.trials = 0
    assert outcome(config, TARGET, [last], FLOPS) == [
        "no other setting was tried: --config.plan.trials is 0"
    ]
