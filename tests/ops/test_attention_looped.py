"""The CPU's attention in several turns and products."""

import jax
import jax.numpy as jnp
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
        (1, 4000, 6, (1, 1, 250)),
        (1, 5000, 6, (1, 1, 313)),  # 16 products, larger ones
    ],
)
def test_what_is_computed_at_once(batch, tokens, heads, want):
    images, of_heads, rows = at_once(batch, tokens, heads)
    assert (images, of_heads, rows) == want
    assert images * rows * tokens <= attention_looped.LOGITS_OF_PRODUCT or tokens > 4096


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


def test_the_backward_pass_keeps_no_logits(monkeypatch):
    """A scan of 12 blocks: 12 x 2 x 2 x 128^2 logits are 3 MiB, everything else that is kept 1."""

    def temporaries(keep: int) -> int:
        monkeypatch.setattr(attention_looped, "LOGITS_TO_KEEP", keep)

        def blocks(x):
            return jax.lax.scan(lambda x, _: (looped_attention(x, x, x), None), x, length=12)[0]

        program = jax.jit(jax.grad(lambda x: blocks(x).sum())).lower(jnp.ones((2, 128, 2, 16)))
        return program.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(0) + 2 * 2**20 < temporaries(2**20)
