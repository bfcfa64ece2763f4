"""The loop of evaluations that train: what its progress shows."""

import jax.numpy as jnp

from dinov2_jax.run import resume


def test_progress_shows_the_least_finite_loss(monkeypatch):
    shown = []

    class Progress(resume.Progress):
        def update(self, step, **numbers):
            shown.append((step, numbers))

    monkeypatch.setattr(resume, "Progress", Progress)

    def step(state, now):
        return state, jnp.array([jnp.nan, 3.0 - now.start, jnp.inf])

    resume.run_steps(step, None, range(2), resume.StateFile(None, {}), 10)
    assert shown == [(1, {"loss": 3.0}), (2, {"loss": 2.0})]
