"""Three full training steps against the reference's vectors: losses, gradients, weights."""

import functools

import jax
import numpy as np
import pytest

from dinov2_jax.bench.ours.golden import (
    batch_of,
    flatten,
    hyper_of,
    initial_state,
    load_params,
    logged,
    objective_of,
    optimizer_settings,
)
from dinov2_jax.ssl.objective import student_loss, teacher_targets
from dinov2_jax.train.optimizer import (
    AdamW,
    clip_by_module_norm,
    module_norms,
    parameter_multipliers,
)
from dinov2_jax.train.schedules import cosine_schedule, linear_then_constant
from dinov2_jax.train.step import train_step

FILES = ["step_sinkhorn", "step_registers_swiglu", "step_centering"]


@pytest.fixture(scope="module", params=FILES)
def case(request, golden):
    return request.param, dict(np.load(golden / f"{request.param}.npz"))


def relative_l2(got: dict, want: dict) -> float:
    error = sum(np.sum((got[k].astype(np.float64) - want[k]) ** 2) for k in want)
    return float(np.sqrt(error / sum(np.sum(want[k].astype(np.float64) ** 2) for k in want)))


def test_three_steps(case):
    name, data = case
    objective = objective_of(name, data)
    params = load_params(data, "init/student/")
    optimizer = AdamW(parameter_multipliers(params, **optimizer_settings(data, objective)))
    state = initial_state(data, objective, optimizer)
    step = jax.jit(functools.partial(train_step, objective=objective, optimizer=optimizer))
    for i in range(3):
        state, metrics = step(state, batch_of(data, i), hyper_of(data, i))
        for part, value in logged(metrics).items():
            np.testing.assert_allclose(value, data[f"step{i}/loss/{part}"], rtol=2e-5, err_msg=part)
        for module in state.student:
            want = data[f"step{i}/grad_norm/{module}"]
            np.testing.assert_allclose(metrics[f"grad_norm/{module}"], want, rtol=2e-5)
    for side in ("student", "teacher"):
        got = flatten(getattr(state, side))
        for module in state.student:
            prefix = f"final/{side}/"
            want = {
                k.removeprefix(prefix): v
                for k, v in data.items()
                if k.startswith(f"{prefix}{module}.")
            }
            assert relative_l2(got, want) <= 5e-5, (side, module)


def test_first_clipped_gradients(case):
    name, data = case
    objective = objective_of(name, data)
    student, teacher = (load_params(data, f"init/{side}/") for side in ("student", "teacher"))
    batch, temp = batch_of(data, 0), hyper_of(data, 0)["teacher_temp"]

    @jax.jit
    def gradients(student, teacher, batch):
        targets, _ = teacher_targets(objective, teacher, objective.init_centers(), batch, temp)
        grads = jax.grad(student_loss, has_aux=True)(student, objective, targets, batch, None)[0]
        return clip_by_module_norm(grads, module_norms(grads), 3.0)

    got = flatten(gradients(student, teacher, batch))
    prefix = "step0/grad_clipped/"
    want = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    assert got.keys() == want.keys()
    for key, value in want.items():
        module = [v for k, v in want.items() if k.split(".")[0] == key.split(".")[0]]
        if np.linalg.norm(value) >= 1e-6 * np.sqrt(sum(np.sum(v**2) for v in module)):
            assert relative_l2({key: got[key]}, {key: value}) <= 5e-5, key


def test_multipliers(case):
    name, data = case
    objective = objective_of(name, data)
    params = load_params(data, "init/student/")
    tree = parameter_multipliers(params, **optimizer_settings(data, objective))
    fields = {
        "lr_mult": lambda m: m.lr,
        "wd_mult": lambda m: m.weight_decay,
        "is_last": lambda m: m.rate == "last_layer_lr",
    }
    for field, of in fields.items():
        full = jax.tree.map(
            lambda p, m, of=of: np.broadcast_to(np.asarray(of(m), np.float64), p.shape),
            params,
            tree,
        )
        got = {key: np.unique(value) for key, value in flatten(full).items()}
        names = data["groups/names"].tolist()
        for key, want in zip(names, data[f"groups/{field}"].tolist(), strict=True):
            assert got[key].size == 1, key
            assert got[key][0] == pytest.approx(float(want), rel=1e-12, abs=0), (field, key)
        assert sorted(names) == sorted(got)


def test_schedules(golden):
    want = np.load(golden / "forward.npz")
    values = {
        "lr": lambda i: cosine_schedule(i, 0.004 * np.sqrt(2), 1e-6, 1000, 100),
        "wd": lambda i: cosine_schedule(i, 0.04, 0.4, 1000),
        "momentum": lambda i: cosine_schedule(i, 0.992, 1.0, 1000),
        "temp": lambda i: linear_then_constant(i, 0.04, 0.07, 300),
    }
    for name, schedule in values.items():
        got = [schedule(i) for i in range(1010)]
        np.testing.assert_allclose(got, want[f"schedule/{name}"], rtol=0, atol=1e-7, err_msg=name)
