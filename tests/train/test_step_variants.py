"""Steps of combinations that no reference vector covers: they run, and stay close to fp32."""

import jax
import numpy as np
import pytest

from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.setup import make_run
from tests.train.tiny import random_batch, tiny_config

PARTS = ("loss/dino_global", "loss/dino_local", "loss/koleo", "loss/ibot")
UNUSUAL = {
    "model.ffn": "swiglu",
    "model.registers": 2,
    "model.interpolate_offset": 0.0,
    "model.interpolate_antialias": True,
    "model.qkv_bias": False,
    "model.drop_path_uniform": False,
    "ibot.separate_head": True,
    "ibot.head_prototypes": 32,
    "ibot.head_bottleneck_dim": 16,
    "ibot.head_hidden_dim": 32,
    "crops.local_number": 0,
}


def two_steps(**changes) -> list[dict[str, float]]:
    config = tiny_config(**changes)
    mesh = make_mesh(1)
    run, found = make_run(config, mesh), []
    state = run.init()
    for i in range(2):
        batch = put_batch(random_batch(config, i), mesh)
        state, metrics = run.step(state, batch, run.schedules.at(i + 2))
        found.append({name: float(value) for name, value in metrics.items()})
    assert all(np.isfinite(list(step.values())).all() for step in found)
    return found


@pytest.fixture(scope="module")
def exact() -> dict[str, list[dict[str, float]]]:
    return {"usual": two_steps(), "unusual": two_steps(**UNUSUAL)}


def test_without_local_crops_their_loss_is_zero(exact):
    for step in exact["unusual"]:
        assert step["loss/dino_local"] == 0
        assert min(step["loss/dino_global"], step["loss/ibot"]) > 0


@pytest.mark.parametrize("which", ["usual", "unusual"])
def test_bf16_follows_fp32(exact, which):
    """A cosine in bf16 is off by up to 0.004; over the teacher's temperature 0.04 that is a tenth
    of a nat, of losses of one to five nats."""
    changes = UNUSUAL if which == "unusual" else {}
    for got, want in zip(two_steps(compute_dtype="bfloat16", **changes), exact[which], strict=True):
        for name in PARTS:
            assert got[name] == pytest.approx(want[name], rel=0.05, abs=0.01), name


def test_parameters_and_state_stay_fp32():
    config = tiny_config(compute_dtype="bfloat16")
    state = make_run(config, make_mesh(1)).abstract_state
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves((state.student, state.opt_state.mu))}
    assert kinds == {"float32"}


def unmasked(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch of a loader that masks nothing: one padded slot a group."""
    groups = len(batch["mask_indices"])
    padded = {"mask_indices": np.zeros((groups, 1), np.int32)}
    padded["mask_weights"] = np.zeros((groups, 1), np.float32)
    return batch | padded | {"masks": np.zeros_like(batch["masks"])}


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_no_masked_patch_is_no_loss(centering):
    """mask_probability 0, or a group so small that none of its crops is masked."""
    config = tiny_config(centering=centering, micro_batches=2, **{"ibot.mask_probability": 0.0})
    assert check_training(config, 1) is not None
    mesh = make_mesh(1)
    run = make_run(config, mesh)
    batch = put_batch(unmasked(random_batch(config, 0)), mesh)
    before = run.init()
    center = np.asarray(before.centers["ibot"])
    state, metrics = run.step(before, batch, run.schedules.at(1))
    assert metrics["loss/ibot"] == 0 and np.isfinite(metrics["loss"])
    np.testing.assert_array_equal(state.centers["ibot"], center)


def test_ibot_of_weight_0_costs_no_head():
    """The greatest head by far would be computed, and its gradient be zero."""
    flops = {}
    for weight in (0.0, 1.0):
        config = tiny_config(
            **{"ibot.loss_weight": weight, "ibot.separate_head": True, "ibot.head_prototypes": 4096}
        )
        mesh = make_mesh(1)
        run = make_run(config, mesh)
        state = jax.eval_shape(run.init)
        batch = put_batch(random_batch(config, 0), mesh)
        lowered = run.step.lower(state, batch, run.schedules.at(1))
        flops[weight] = lowered.cost_analysis()["flops"]
    rows = config.batch_size * config.crops.global_size**2 // config.model.patch_size**2 // 2
    head = 3 * 2 * rows * 4096 * config.ibot.head_bottleneck_dim  # of the prototypes, at least
    assert flops[1.0] - flops[0.0] > head / 2
