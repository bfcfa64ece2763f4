"""AdamW against optax, and steps that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinov2_jax.train.optimizer import AdamW, Multipliers, module_norms

PLAIN = Multipliers(1.0, 1.0)
HYPER = {
    "lr": jnp.float32(1e-2),
    "last_layer_lr": jnp.float32(3e-3),
    "weight_decay": jnp.float32(0.04),
}


def draw(seed: int, scale: float = 1.0) -> dict:
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "backbone": {"w": scale * jax.random.normal(keys[0], (4, 3))},
        "dino_head": {"w": scale * jax.random.normal(keys[1], (5,))},
    }


def update(optimizer: AdamW, grads: dict, state, params: dict, finite: bool = True):
    return optimizer.update(grads, module_norms(grads), state, params, HYPER, jnp.bool_(finite))


def test_it_is_optax_adamw():
    params = draw(0)
    ours = AdamW(jax.tree.map(lambda _: PLAIN, params), clip_norm=1e9)
    theirs = optax.adamw(1e-2, 0.9, 0.999, eps=1e-8, weight_decay=0.04)
    state, their_state, wanted = ours.init(params), theirs.init(params), params
    for i in range(1, 4):
        params, state = update(ours, draw(i), state, params)
        updates, their_state = theirs.update(draw(i), their_state, wanted)
        wanted = optax.apply_updates(wanted, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), params, wanted)


def test_each_module_is_clipped_to_its_own_norm():
    params = draw(0)
    optimizer = AdamW(jax.tree.map(lambda _: PLAIN, params), clip_norm=3.0)
    grads = {**draw(1, 100.0), "dino_head": {"w": jnp.full((5,), 0.1)}}
    moments = update(optimizer, grads, optimizer.init(params), params)[1].mu
    assert optax.tree.norm(moments["backbone"]) == pytest.approx(0.3, rel=1e-5)
    np.testing.assert_allclose(moments["dino_head"]["w"], 0.01, rtol=1e-6)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_without_finite_all_stays_to_the_bit(steps_before):
    params = draw(0)
    optimizer = AdamW(jax.tree.map(lambda _: PLAIN, params))
    state = optimizer.init(params)
    for i in range(steps_before):
        params, state = update(optimizer, draw(i + 1), state, params)
    bad = jax.tree.map(lambda x: x * jnp.nan, draw(9))
    after = update(optimizer, bad, state, params, finite=False)
    assert int(after[1].count) == steps_before
    jax.tree.map(np.testing.assert_array_equal, after, (params, state))
