"""A step without a finite loss changes nothing but the counters; three in a row stop the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
from dinov2_jax.train.nonfinite import NonFiniteLoss, NonFiniteWatch
from dinov2_jax.train.setup import make_run
from tests.train.tiny import random_batch, tiny_config


def test_a_bad_step_is_skipped_and_counted():
    config = tiny_config()
    mesh = make_mesh(1)
    run = make_run(config, mesh)
    state = run.init()
    batch = put_batch(random_batch(config, 0), mesh)
    bad = batch | {"mask_weights": jnp.full_like(batch["mask_weights"], jnp.nan)}
    before = jax.device_get((state.student, state.teacher, state.opt_state, state.centers))
    state, metrics = run.step(state, bad, run.schedules.at(3))
    after = jax.device_get((state.student, state.teacher, state.opt_state, state.centers))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    assert [int(state.step), int(metrics["nonfinite_steps"])] == [1, 1]
    state, metrics = run.step(state, batch, run.schedules.at(3))
    assert [int(metrics["nonfinite_streak"]), int(metrics["nonfinite_steps"])] == [0, 1]
    moved = jax.tree.map(np.array_equal, before[0], jax.device_get(state.student))
    assert not any(jax.tree.leaves(moved["dino_head"]["mlp_0"]))


def test_the_watch_dumps_warns_and_stops(tmp_path):
    watch = NonFiniteWatch(tmp_path)
    batch = {"masks": np.ones(3)}
    assert watch.check(1, batch, 0) == []
    (message,) = watch.check(2, batch, 1)
    assert "step 2" in message
    assert np.load(tmp_path / "nonfinite/step_2.npz")["masks"].sum() == 3
    watch.check(3, batch, 2)
    with pytest.raises(NonFiniteLoss, match=r"3 steps in a row up to step 4.*base_lr"):
        watch.check(4, batch, 3)
