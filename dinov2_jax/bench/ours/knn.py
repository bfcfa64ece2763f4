"""Our search in a bank on the device."""

import numpy as np

from dinov2_jax.bench.draws import draw_unit_vectors
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import configure, side_of
from dinov2_jax.features.search import Bank


def side(settings: Settings) -> Side:
    """settings: "bank", "queries", "dim", "k", "dtype", "seed"."""
    configure(settings)
    bank, queries = draw_unit_vectors(settings)
    held = Bank(bank, np.zeros(len(bank), np.int32))

    def check() -> Arrays:
        nearest = held.search(queries, settings["k"])
        return {"similarities": nearest.similarities, "rows": nearest.rows}

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            held.search(queries, settings["k"])

    return side_of(check, run)
