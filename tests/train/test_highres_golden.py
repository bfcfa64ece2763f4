"""The high-resolution stage against the reference's vectors: tables, losses, gradients, weights."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dinov2_jax.bench.ours.golden import (
    PATCH,
    batch_of,
    flatten,
    hyper_of,
    initial_state,
    load_params,
    logged,
    networks,
    optimizer_settings,
)
from dinov2_jax.models.positions import CONVENTIONS, resize_positions
from dinov2_jax.ssl.objective import Objective
from dinov2_jax.train.optimizer import AdamW, parameter_multipliers
from dinov2_jax.train.step import train_step
from dinov2_jax.weights.adapt import with_image_size
from tests.train.test_step_golden import relative_l2

# How each model resamples positions, which its weights do not tell.
RULES = {"mlp_offset": (0.1, False), "reg_swiglu_antialias": (0.0, True)}


@pytest.fixture(scope="module")
def vectors(golden):
    return dict(np.load(golden / "highres_step.npz"))


def below(data: dict, prefix: str) -> dict:
    """The arrays below a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def grid_of(table: np.ndarray) -> tuple[int, int]:
    side = round((table.shape[1] - 1) ** 0.5)
    return side, side


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_tables(vectors, convention):
    tables = below(vectors, "tables/")
    sizes = {name.split("/")[0] for name in tables}
    assert len(sizes) >= 2
    for size in sizes:
        grid = tuple(map(int, size.split("_to_")[1].split("x")))
        got = resize_positions(tables[f"{size}/table"], grid, *CONVENTIONS[convention])
        np.testing.assert_allclose(
            got, tables[f"{size}/{convention}"], rtol=0, atol=1e-5, err_msg=size
        )


def test_each_convention_differs_from_the_others(vectors):
    """So that the test above can tell them apart."""
    tables = below(vectors, "tables/")
    for size in {name.split("/")[0] for name in tables}:
        by_name = [tables[f"{size}/{name}"] for name in CONVENTIONS]
        for i, one in enumerate(by_name):
            assert all(np.abs(one - other).max() > 1e-4 for other in by_name[:i]), size


class Stage:
    """What the file holds of one model, with the state that starts its stage."""

    def __init__(self, vectors: dict, name: str) -> None:
        data = below(vectors, f"{name}/")
        offset, antialias = RULES[name]
        rule = {"interpolate_offset": offset, "interpolate_antialias": antialias}
        self.px = data["step0/collated_global_crops"].shape[-1]
        for side in ("student", "teacher"):
            params = load_params(data, f"base/{side}/")
            old = PATCH * grid_of(params["backbone"]["pos_embed"])[0]
            model = networks(params, old).backbone.clone(**rule)
            params["backbone"] = with_image_size(params["backbone"], model, self.px)
            data |= {f"init/{side}/{key}": x for key, x in flatten(params).items()}
        nets = networks(load_params(data, "init/student/"), self.px)
        nets = dataclasses.replace(nets, backbone=nets.backbone.clone(**rule))
        self.data, self.objective = data, Objective(nets, nets, centering="sinkhorn_knopp")
        self.steps = len({key.split("/")[0] for key in data if key.startswith("step")})


@pytest.fixture(scope="module", params=RULES)
def stage(request, vectors) -> Stage:
    return Stage(vectors, request.param)


def test_position_tables_of_both_sides(stage):
    for side in ("student", "teacher"):
        want = stage.data[f"resampled/{side}/backbone.pos_embed"]
        got = stage.data[f"init/{side}/backbone.pos_embed"]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
        base = below(stage.data, f"base/{side}/")
        for key in base.keys() - {"backbone.pos_embed"}:
            np.testing.assert_array_equal(stage.data[f"init/{side}/{key}"], base[key])


def without_key_biases(tensors: dict) -> dict:
    """Their gradient is zero but for rounding, which Adam turns into full steps."""

    def cut(key: str, x: np.ndarray) -> np.ndarray:
        dim = len(x) // 3
        return np.delete(x, slice(dim, 2 * dim)) if key.endswith("attn.qkv.bias") else x

    return {key: cut(key, x) for key, x in tensors.items()}


def test_steps(stage):
    data, objective = stage.data, stage.objective
    params = load_params(data, "init/student/")
    optimizer = AdamW(parameter_multipliers(params, **optimizer_settings(data, objective)))
    state = initial_state(data, objective, optimizer)
    step = jax.jit(functools.partial(train_step, objective=objective, optimizer=optimizer))
    for i in range(stage.steps):
        state, metrics = step(state, batch_of(data, i), hyper_of(data, i))
        for part, value in logged(metrics).items():
            np.testing.assert_allclose(value, data[f"step{i}/loss/{part}"], rtol=2e-5, err_msg=part)
        for module in state.student:
            want = data[f"step{i}/grad_norm/{module}"]
            np.testing.assert_allclose(metrics[f"grad_norm/{module}"], want, rtol=2e-5)
    for side in ("student", "teacher"):
        got = without_key_biases(flatten(getattr(state, side)))
        final = without_key_biases(below(data, f"final/{side}/"))
        for module in state.student:
            want = {key: x for key, x in final.items() if key.startswith(f"{module}.")}
            assert want and relative_l2(got, want) <= 5e-5, (side, module)
