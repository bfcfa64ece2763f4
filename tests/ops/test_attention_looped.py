"""The CPU's attention in several turns."""

import jax
import pytest

from dinov2_jax.ops import attention_looped
from dinov2_jax.ops.attention_looped import heads_at_once, looped_attention
from tests.ops.kernels import TOLERANCE, assert_equal, draw, formula, run


def test_heads_at_once_divide_and_fit():
    assert heads_at_once(6, 257) == 6
    assert heads_at_once(48, 257) == 6  # 7 would fit
    assert heads_at_once(16 * 6, 37) == 96
    assert heads_at_once(6, 1370) == 1


@pytest.mark.parametrize("at_once", [1, 2 * 37**2, 4 * 37**2])
def test_any_number_of_turns_is_the_formula(at_once, monkeypatch):
    """6 heads: 6 turns of one, 3 of two, and 2 of three."""
    monkeypatch.setattr(attention_looped, "LOGITS_AT_ONCE", at_once)
    inputs = draw(3, 37, 2, 16)
    assert_equal(
        jax.jit(run, static_argnums=0)(looped_attention, *inputs), formula(*inputs), TOLERANCE
    )
