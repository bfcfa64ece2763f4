"""Three steps of distillation against the reference's vectors: targets, losses, weights, EMA."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.bench.ours.golden import (
    batch_of,
    flatten,
    hyper_of,
    initial_state,
    load_params,
    logged,
    networks,
    optimizer_settings,
)
from dinov2_jax.ssl.distillation import with_all_patches
from dinov2_jax.ssl.objective import Objective, student_loss, teacher_targets
from dinov2_jax.train.optimizer import (
    AdamW,
    clip_by_module_norm,
    module_norms,
    parameter_multipliers,
)
from dinov2_jax.train.step import train_step
from tests.train.test_step_golden import relative_l2

VARIANTS = ["all", "masked"]


@pytest.fixture(scope="module")
def data(golden):
    return dict(np.load(golden / "distill_step.npz"))


def objective_of(data: dict, patches: str) -> Objective:
    crop_px = data["step0/collated_global_crops"].shape[-1]
    student, teacher = (
        networks(load_params(data, f"init/{side}/"), crop_px) for side in ("student", "teacher")
    )
    return Objective(
        student, teacher, masked_student=False, patches=patches, centering="sinkhorn_knopp"
    )


def start(data: dict, patches: str):
    """The objective, the optimizer, the first state and the frozen teacher."""
    objective = objective_of(data, patches)
    params = load_params(data, "init/student/")
    optimizer = AdamW(parameter_multipliers(params, **optimizer_settings(data, objective)))
    state = initial_state(data, objective, optimizer)
    average = jax.tree.map(jnp.asarray, load_params(data, "init/ema/"))
    frozen = jax.tree.map(jnp.asarray, load_params(data, "init/teacher/"))
    return objective, optimizer, state.replace(teacher=average), frozen


def below(data: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def without_keys(flat: dict) -> dict:
    """The weights without the key third of the qkv biases, whose gradient is rounding noise."""
    kept = {}
    for name, x in flat.items():
        third = len(x) // 3
        kept[name] = np.delete(x, range(third, 2 * third)) if name.endswith("qkv.bias") else x
    return kept


@pytest.mark.parametrize("patches", VARIANTS)
def test_three_steps(data, patches):
    objective, optimizer, state, frozen = start(data, patches)
    step = jax.jit(functools.partial(train_step, objective=objective, optimizer=optimizer))
    for i in range(3):
        state, metrics = step(state, batch_of(data, i), hyper_of(data, i), frozen)
        want = below(data, f"{patches}/step{i}/")
        for part, value in logged(metrics).items():
            np.testing.assert_allclose(value, want[f"loss/{part}"], rtol=2e-5, err_msg=part)
        np.testing.assert_allclose(metrics["loss"], want["total"], rtol=2e-5)
        for module in state.student:
            norm = metrics[f"grad_norm/{module}"]
            np.testing.assert_allclose(norm, want[f"grad_norm/{module}"], rtol=2e-5)
    for side, params in (("student", state.student), ("ema", state.teacher)):
        got = without_keys(flatten(params))
        for module in state.student:
            want = without_keys(below(data, f"{patches}/final/{side}/"))
            of_module = {k: v for k, v in want.items() if k.startswith(f"{module}.")}
            assert of_module
            assert relative_l2(got, of_module) <= 5e-5, (side, module)


@pytest.mark.parametrize("patches", VARIANTS)
def test_first_targets_and_clipped_gradients(data, patches):
    objective, _, state, frozen = start(data, patches)
    batch, temp = batch_of(data, 0), hyper_of(data, 0)["teacher_temp"]
    if patches == "all":
        batch = with_all_patches(batch, objective.student.backbone.patch_size)

    @jax.jit
    def targets_and_gradients(student, teacher, batch):
        targets, _ = teacher_targets(objective, teacher, objective.init_centers(), batch, temp)
        grads = jax.grad(student_loss, has_aux=True)(student, objective, targets, batch, None)[0]
        return targets, clip_by_module_norm(grads, module_norms(grads), 3.0)

    targets, grads = targets_and_gradients(state.student, frozen, batch)
    want = below(data, f"{patches}/step0/")
    # The file has the targets as the losses take them: the crops swapped, and crop before image.
    dino = np.moveaxis(np.asarray(targets.dino.probabilities[0])[:, ::-1], 1, 0)
    np.testing.assert_allclose(dino, want["targets/dino"], atol=1e-5)
    ibot = np.asarray(targets.ibot.probabilities[0])[_rows(data, batch, patches)]
    np.testing.assert_allclose(ibot, want["targets/ibot"], atol=1e-5)
    got, grads_want = flatten(grads), below(data, f"{patches}/step0/grad_clipped/")
    assert got.keys() >= grads_want.keys()
    for key, value in grads_want.items():
        module = [v for k, v in grads_want.items() if k.split(".")[0] == key.split(".")[0]]
        if np.linalg.norm(value) >= 1e-6 * np.sqrt(sum(np.sum(v**2) for v in module)):
            assert relative_l2({key: got[key]}, {key: value}) <= 5e-5, key


def _rows(data: dict, batch: dict, patches: str) -> np.ndarray:
    """The file's rows of iBOT targets, crop before image, as numbers of our slots."""
    if patches == "masked":
        return np.arange(len(data["step0/mask_indices_list"]))
    images, views = batch["global_crops"].shape[:2]
    slots = batch["mask_indices"].size
    return np.arange(slots).reshape(images, views, -1).swapaxes(0, 1).ravel()


def test_the_student_of_a_distillation_sees_whole_crops(data):
    """Masks change nothing, where in pretraining they change the loss."""
    objective, _, state, frozen = start(data, "masked")
    batch, temp = batch_of(data, 0), hyper_of(data, 0)["teacher_temp"]
    targets, _ = teacher_targets(objective, frozen, objective.init_centers(), batch, temp)
    other = batch | {"masks": ~batch["masks"]}

    def loss(objective: Objective, batch: dict) -> float:
        return float(student_loss(state.student, objective, targets, batch, None)[0])

    assert loss(objective, batch) == loss(objective, other)
    pretraining = dataclasses.replace(objective, masked_student=True)
    assert loss(pretraining, batch) != loss(pretraining, other)
