"""Steps of the linear probe's 52 classifiers."""

import dataclasses
from typing import Any

import jax
import numpy as np

from dinov2_jax.bench.draws import draw_probe
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import configure, side_of
from dinov2_jax.heads import probe as linear
from dinov2_jax.heads.grid import RATES, Grid
from dinov2_jax.parallel.mesh import make_mesh


def side(settings: Settings) -> Side:
    """settings: "rows", "dim", "classes", "batch", "iterations", "check_steps", "seed"."""
    configure(settings)
    batch, classes = settings["batch"], settings["classes"]
    shape = settings["check_steps"], batch
    sizes = settings["rows"], settings["dim"], classes, len(RATES["code"])
    drawn = draw_probe(settings["seed"], *sizes, shape)
    probe = linear.ProbeSettings(Grid(), batch_size=batch, iterations=settings["iterations"])
    mesh = make_mesh()
    kinds = tuple(probe.grid.kinds)
    how = linear.read_held, kinds, probe.momentum, mesh, classes
    steps = linear.compiled_step(*how, several=True)
    constants = jax.device_put((drawn.columns, drawn.labels.astype(np.int32)))
    placed = linear.state_shardings(mesh, len(kinds), classes)

    def begin() -> Any:
        biases = [np.zeros(weight.shape[1:], np.float32) for weight in drawn.weights]
        parts = drawn.weights, biases, [0 * w for w in drawn.weights], [0 * b for b in biases]
        names = "weights", "biases", "weight_momenta", "bias_momenta"
        return jax.device_put(dict(zip(names, parts, strict=True)), placed, may_alias=False)

    def check() -> Arrays:
        rates = np.stack([linear.rates_at(probe, i) for i in range(len(drawn.order))])
        rows = {"rows": drawn.order.astype(np.int32)}
        state, _ = steps(begin(), constants, rows, rates, np.int32(len(drawn.order)))
        heads = zip(kinds, state["weights"], state["biases"], strict=True)
        return {
            f"{name} {kind.blocks} {kind.avgpool}": np.asarray(x, np.float32)
            for kind, weight, bias in heads
            for name, x in (("weight", weight), ("bias", bias))
        }

    order = linear.epochs(settings["rows"], batch, settings["seed"])
    held = {"state": begin()}

    def run(repetitions: int) -> None:
        for _ in range(0, repetitions, linear.STRIDE):
            rows = {"rows": np.stack([next(order) for _ in range(linear.STRIDE)])}
            rates = np.stack([linear.rates_at(probe, i) for i in range(linear.STRIDE)])
            count = np.int32(linear.STRIDE)
            held["state"], _ = steps(held["state"], constants, rows, rates, count)
        jax.block_until_ready(held["state"])

    return dataclasses.replace(side_of(check, run), multiple=linear.STRIDE)
