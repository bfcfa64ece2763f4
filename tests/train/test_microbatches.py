"""Gradient accumulation gives the very update of the large batch."""

import jax
import numpy as np
import pytest

from dinov2_jax.config.files import ConfigError
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.ssl.microbatches import join_parts, take_part
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.setup import make_run
from tests.train.tiny import random_batch, tiny_config, train_steps


def test_parts_are_whole_groups_and_come_back_in_order():
    x = np.arange(24).reshape(12, 2)  # 6 groups of 2 rows
    parts = [take_part(x, 6, 3, index) for index in range(3)]
    np.testing.assert_array_equal(parts[1], x[[2, 3, 8, 9]])
    groups = np.stack(parts).reshape(3, 2, 2, 2)
    np.testing.assert_array_equal(join_parts(groups).reshape(12, 2), x)


@pytest.mark.parametrize(
    ("parts", "mesh", "changes"),
    [
        (4, (1, 1), {}),
        (2, (2, 2), {"centering": "centering"}),
        (2, (1, 1), {"prototype_block": 16, "crops.local_number": 0}),
    ],
)
def test_update_is_that_of_the_whole_batch(parts, mesh, changes):
    """Masks, KoLeo, stochastic depth, Sinkhorn-Knopp or centres: all of it."""
    want, want_state = train_steps(tiny_config(**changes), 2)
    got, state = train_steps(tiny_config(micro_batches=parts, **changes), 2, mesh)
    for step, reference in zip(got, want, strict=True):
        for name, value in reference.items():
            assert step[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for a, b in zip(*map(jax.tree.leaves, (state.student, want_state.student)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4)  # two steps move by about 1e-3


def test_less_memory():
    def temporary_bytes(parts: int) -> int:
        config = tiny_config(batch_size=64, micro_batches=parts)
        mesh = make_mesh(1)
        run = make_run(config, mesh)
        batch = random_batch(config, 0)
        compiled = run.step.lower(run.abstract_state, batch, run.schedules.at(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8) < 0.5 * temporary_bytes(1)


def test_parts_must_divide_the_groups_of_a_shard():
    with pytest.raises(ConfigError, match=r"--config\.micro_batches=2"):
        check_training(tiny_config(micro_batches=4), device_count=4)
