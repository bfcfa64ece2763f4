"""What collectives carry, told from the shapes of their arrays."""

import dataclasses

import pytest

from dinov2_jax.plan.hlo import Part
from tests.plan.collectives import Collective
from tests.plan.purposes import Shapes, by_purpose, squeeze

# A weight [48, 144] with its bias, and 64 prototypes.
SHAPES = Shapes(frozenset({squeeze((48, 144)), (144,)}), frozenset({64}))


@pytest.mark.parametrize(
    ("kind", "shape", "meaning"),
    [
        ("all-gather", (144, 48), "weights"),
        ("all-gather", (1, 48, 144), "weights"),
        ("all-gather", (4, 12, 144), "weights"),
        ("collective-permute", (48, 144), "weights and gradients"),
        ("reduce-scatter", (48, 144), "gradients"),
        ("reduce-scatter", (64, 144), "gradients"),  # a TPU pads shares to tiles
        ("reduce-scatter", (48, 144 + 128), "activations"),
        ("all-reduce", (64, 144), "activations"),
        ("all-reduce", (144,), "gradients"),
        ("all-gather", (144,), "weights"),
        ("all-gather", (24,), "activations"),
        ("all-reduce", (64,), "centre and Sinkhorn sums"),
        ("all-reduce", (24,), "sums of vectors"),
        ("all-reduce", (48 * 144 + 48,), "gradients"),  # a GPU packs them
        ("all-reduce", (), "losses and norms"),
        ("all-gather", (40, 17, 48), "activations"),
        ("all-to-all", (5, 48), "activations"),
    ],
)
def test_purposes(kind, shape, meaning):
    found = by_purpose(Collective(kind, (Part("f32", shape),), 1, ""), SHAPES)
    assert list(found) == [meaning]


def test_padding_of_many_shares():
    """131,072 prototypes in 32 shares: a TPU's compiler reduced 132,352 rows."""
    shapes = Shapes(frozenset({squeeze((131_072, 256))}))
    padded = Collective("reduce-scatter", (Part("f32", (132_352, 256)),), 1, "")
    assert list(by_purpose(padded, shapes)) == ["gradients"]
    assert list(by_purpose(dataclasses.replace(padded, kind="all-gather"), shapes)) == [
        "activations"
    ]


def test_one_message_of_several_purposes():
    parts = tuple(Part("f32", shape) for shape in ((), (144,), (64,), (48, 144), ()))
    found = by_purpose(Collective("all-reduce", parts, 3, ""), SHAPES)
    assert {name: c.wire_bytes for name, c in found.items()} == {
        "losses and norms": 3 * 2 * 2 * 4,
        "gradients": 3 * 2 * 4 * (144 + 48 * 144),
        "centre and Sinkhorn sums": 3 * 2 * 64 * 4,
    }
