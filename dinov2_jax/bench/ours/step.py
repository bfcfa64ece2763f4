"""The whole training step: targets, student gradient, AdamW, EMA."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from ml_collections import ConfigDict

from dinov2_jax.bench.draws import draw_batch, draw_networks
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import side_of
from dinov2_jax.ssl.objective import Objective
from dinov2_jax.train.setup import make_objective, optimizer_of, return_free_memory
from dinov2_jax.train.state import TrainState
from dinov2_jax.train.step import train_step
from dinov2_jax.weights.convert import from_reference


def _networks(config: Settings, seed: int) -> dict[str, Any]:
    flats = draw_networks(config, seed)
    return {name: jax.tree.map(jnp.array, from_reference(flat)) for name, flat in flats.items()}


def _state(settings: Settings, objective: Objective, optimizer: Any, student: Any) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        student=student,
        teacher=_networks(settings["config"], settings["seed"] + 100),
        opt_state=optimizer.init(student),
        centers=objective.init_centers(),
        rng=jax.random.key(settings["seed"]),
        nonfinite_steps=jnp.copy(zero),
        nonfinite_streak=jnp.copy(zero),
    )


def _figures(metrics: dict[str, Array], state: TrainState) -> Arrays:
    """Numbers to compare after a step; DINO terms are summed, as lightly has only the sum."""
    figures = {
        "dino": metrics["loss/dino_global"] + metrics["loss/dino_local"],
        "koleo": metrics["loss/koleo"],
        "ibot": metrics["loss/ibot"],
        "student_norm": optax.tree.norm(state.student),
        "teacher_norm": optax.tree.norm(state.teacher),
    }
    norms = {name: value for name, value in metrics.items() if name.startswith("grad_norm/")}
    return {name: np.asarray(value, np.float32) for name, value in (figures | norms).items()}


def side(settings: Settings) -> Side:
    """settings: "config" (all fields, as a dict), "hyper" (scalars of the schedules), "seed"."""
    if settings["config"]["compute_dtype"] == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    config = ConfigDict(settings["config"])
    objective = make_objective(config)
    student = _networks(settings["config"], settings["seed"])
    optimizer = optimizer_of(config, objective, student)
    hyper = {name: jnp.float32(value) for name, value in settings["hyper"].items()}
    batch = jax.tree.map(jnp.asarray, draw_batch(settings["config"], settings["seed"]))
    step = jax.jit(
        functools.partial(train_step, objective=objective, optimizer=optimizer), donate_argnums=0
    )
    state = _state(settings, objective, optimizer, student)
    started = False

    def call() -> dict[str, Array]:
        nonlocal state, started
        state, metrics = step(state, batch, hyper)
        if not started:  # as the training loop does once the step is compiled
            return_free_memory()
            started = True
        return metrics

    def run(repetitions: int) -> None:
        metrics = {}
        for _ in range(repetitions):
            metrics = call()
        jax.block_until_ready((state, metrics))

    def check() -> Arrays:
        numbers = {}
        for number in (1, 2):
            metrics = call()
            numbers |= {f"step {number} {k}": v for k, v in _figures(metrics, state).items()}
        return numbers

    return side_of(check, run)
