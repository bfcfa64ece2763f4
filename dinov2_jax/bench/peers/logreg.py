"""scikit-learn's LogisticRegression with warm starts along ascending C."""

import warnings

import numpy as np
import sklearn as library
from sklearn.linear_model import LogisticRegression

from dinov2_jax.bench.draws import draw_classes, logistic_objective
from dinov2_jax.bench.harness import Arrays, Settings, Side


def sklearn(settings: Settings) -> Side:
    """settings: as ours/logreg.py, "features" (their dtype), "peer_tol", "peer_iter"."""
    drawn, labels = draw_classes(settings)
    features = drawn.astype(settings["features"])
    values = 10 ** np.linspace(-6, 5, settings["values"])

    def sweep() -> list[tuple[np.ndarray, np.ndarray, int]]:
        model = LogisticRegression(
            tol=settings["peer_tol"], max_iter=settings["peer_iter"], warm_start=True
        )
        fits = []
        for C in values:
            model.C = C
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # stopped by max_iter, as the protocol does
                model.fit(features, labels)
            fits.append((model.coef_.copy(), model.intercept_.copy(), int(model.n_iter_.max())))
        return fits

    def check() -> Arrays:
        models = sweep()
        objectives = [
            logistic_objective(drawn, labels, weight, bias, C)
            for (weight, bias, _), C in zip(models, values, strict=True)
        ]
        return {
            "objectives": np.array(objectives),
            "steps": np.array([steps for *_, steps in models]),
        }

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            sweep()

    return Side(check, run, versions={"scikit-learn": library.__version__})
