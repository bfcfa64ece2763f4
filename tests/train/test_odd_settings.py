"""Odd but accepted settings: the training step is traced with them, without an error."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.config.files import leaves
from dinov2_jax.config.overrides import override
from dinov2_jax.errors import UserError
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.setup import abstract_batch, make_run
from tests.train.tiny import tiny_config

NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "7",
    "8",
    "12",
    "16",
    "0.0",
    "1.0",
    "0.5",
    "0.1",
    "0.999",
    "1e-3",
    "0.01",
    "1000",
]
CHOICES = {
    "compute_dtype": ("float32", "bfloat16"),
    "model.variant": ("vit_tiny", "vit_small"),
    "model.ffn": ("mlp", "swiglu"),
    "model.attention": ("xla", "looped", "triton"),
    "model.blocks": ("auto", "scan", "unroll"),
    "model.remat": ("auto", "none", "pointwise", "blocks"),
    "centering": ("centering", "sinkhorn_knopp"),
    "optimizer.lr_scaling": ("none",),
}
# These change nothing of the step.
ASIDE = ("data", "eval", "checkpoint", "plan", "distributed", "init_from", "task")
TRACES = 4


def drawn(rng: np.random.Generator, values: tuple[Any, ...]) -> str:
    return str(values[rng.integers(len(values))])


def draws(seed: int) -> Iterator[tuple[dict[str, str], int]]:
    """Settings of one to four fields, and a number of devices."""
    rng = np.random.default_rng(seed)
    base = {n: v for n, v in leaves(tiny_config()).items() if n.split(".")[0] not in ASIDE}
    while True:
        names = rng.choice(sorted(base), int(rng.integers(1, 5)), replace=False)
        given = {}
        for name in map(str, names):
            value: Any = base[name]
            if isinstance(value, tuple):
                given[name] = f"({','.join(drawn(rng, NUMBERS) for _ in value)},)"
            elif isinstance(value, bool):
                given[name] = str(rng.random() < 0.5)
            else:
                given[name] = drawn(rng, CHOICES.get(name, NUMBERS))
        yield given, int(rng.choice([1, 8]))


def trace(config: ConfigDict, devices: int) -> None:
    """Traces the step, and computes the first schedules."""
    mesh = make_mesh(**config.mesh, devices=jax.devices()[:devices])
    run = make_run(config, mesh)
    hyper = [run.schedules.at(step) for step in range(min(config.total_steps, 20))]
    assert all(np.isfinite(value) for values in hyper for value in values.values())
    shapes = dict.fromkeys(hyper[0], jax.ShapeDtypeStruct((), jnp.float32))
    with jax.set_mesh(mesh):
        run.step.lower(run.abstract_state, abstract_batch(config, mesh), shapes)


def test_what_is_accepted_can_be_traced() -> None:
    traced = 0
    for given, devices in draws(seed=0):
        config = tiny_config(**{"data.path": "/pictures"})
        try:
            override(config, given)
            check_training(config, devices)
        except UserError:
            continue
        try:
            trace(config, devices)
        except Exception as error:
            raise AssertionError(f"{given} on {devices} devices") from error
        traced += 1
        if traced == TRACES:
            return
