"""Our logistic regression: fits every C to its optimum, one after the other."""

import numpy as np

from dinov2_jax.bench.draws import draw_classes, logistic_objective
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import configure, side_of
from dinov2_jax.heads.logistic.fit import Fitter, Model


def side(settings: Settings) -> Side:
    """settings: "rows", "dim", "classes", "apart", "values", "dtype", "seed"."""
    configure(settings)
    features, labels = draw_classes(settings)
    values = 10 ** np.linspace(-6, 5, settings["values"])

    def sweep() -> list[Model]:
        return list(Fitter(features, labels, settings["classes"]).path(values))

    def check() -> Arrays:
        models = sweep()
        objectives = [
            logistic_objective(features, labels, m.weight, m.bias, C)
            for m, C in zip(models, values, strict=True)
        ]
        return {
            "objectives": np.array(objectives),
            "steps": np.array([model.iterations for model in models]),
        }

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            sweep()

    return side_of(check, run)
