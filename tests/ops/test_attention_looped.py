"""The CPU's attention in several turns and products."""

import jax
import pytest

from dinov2_jax.ops import attention_looped
from dinov2_jax.ops.attention_looped import at_once, largest_divisor, looped_attention
from tests.ops.kernels import TOLERANCE, assert_equal, draw, formula, run


def test_largest_divisor():
    assert [largest_divisor(12, n) for n in (0, 1, 5, 11, 12, 99)] == [1, 1, 4, 6, 12, 12]


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "want"),
    [
        (8, 257, 6, (8, 6, 257)),  # 8 images of 66 thousand logits, all heads
        (64, 257, 6, (8, 6, 257)),  # 15 images would fit
        (1, 1370, 6, (1, 6, 685)),  # a head's 1.9 million logits in two products
        (2, 1370, 24, (1, 8, 685)),
        (1, 5000, 6, (1, 1, 209)),  # 24 products
    ],
)
def test_what_is_computed_at_once(batch, tokens, heads, want):
    images, of_heads, rows = at_once(batch, tokens, heads)
    assert (images, of_heads, rows) == want
    assert images * rows * tokens <= attention_looped.LOGITS_OF_PRODUCT


@pytest.mark.parametrize(
    ("product", "turn", "want"),
    [
        (400, 1, (1, 1, 10)),  # rows in blocks, the last of 7
        (400, 2**12, (1, 2, 10)),
        (2 * 37**2, 2**13, (2, 2, 37)),
        (4 * 37**2, 4 * 37**2, (4, 1, 37)),
        (2**20, 2**24, (4, 2, 37)),
    ],
)
@pytest.mark.parametrize("keep", [0, 2**19])
def test_any_number_of_turns_is_the_formula(product, turn, want, keep, monkeypatch):
    for name, value in (("OF_PRODUCT", product), ("AT_ONCE", turn), ("TO_KEEP", keep)):
        monkeypatch.setattr(attention_looped, f"LOGITS_{name}", value)
    inputs = draw(4, 37, 2, 16)
    assert at_once(4, 37, 2) == want
    fresh = jax.jit(lambda *inputs: run(looped_attention, *inputs))  # not compiled before
    assert_equal(fresh(*inputs), formula(*inputs), TOLERANCE)
