"""Keys of seeds."""

import jax
import numpy as np

from dinov2_jax.ops.seeds import seed_key


def test_seeds_of_32_bits_give_the_keys_of_jax() -> None:
    for seed in (0, 1, 2**31, 2**32 - 1):
        ours, theirs = (
            jax.random.key_data(seed_key(seed)),
            jax.random.key_data(jax.random.key(seed)),
        )
        np.testing.assert_array_equal(ours, theirs)


def test_larger_seeds_give_keys_of_their_own() -> None:
    seeds = (0, 1, 2**32, 2**32 + 1, 2**62, 2**63 - 1)
    assert len({tuple(jax.random.key_data(seed_key(seed)).tolist()) for seed in seeds}) == 6
