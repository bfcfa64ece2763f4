"""FLOPs against the formulas of matrix products and against an independent model of the recipes."""

import jax
import jax.numpy as jnp
import pytest

from configs import default, vitg14, vitl14, vitl16_short, vits14
from dinov2_jax.plan.flops import count_flops, step_flops

A, B = jnp.zeros((4, 8, 16)), jnp.zeros((16, 32))
PRODUCT = 2 * 4 * 8 * 16 * 32


def test_a_product_and_its_two_gradients():
    assert count_flops(lambda a, b: a @ b, A, B) == PRODUCT
    both = jax.value_and_grad(lambda a, b: (a @ b).sum(), argnums=(0, 1))
    assert count_flops(both, A, B) == 3 * PRODUCT
    assert count_flops(lambda q, k: jnp.einsum("bqd,bkd->bqk", q, k), A, A) == 2 * 4 * 8 * 8 * 16


def test_a_loop_counts_as_often_as_it_runs():
    square = jnp.zeros((16, 16))

    def loop(x, weights):
        return jax.lax.scan(lambda x, w: (jax.nn.gelu(x @ w), None), x, weights)[0]

    weights = jnp.zeros((5, 16, 16))
    once = 2 * 16**3
    assert count_flops(loop, square, weights) == 5 * once
    assert count_flops(jax.jit(jax.grad(lambda *a: loop(*a).sum(), (0, 1))), square, weights) == (
        3 * 5 * once
    )


def test_recomputation_counts_once_more():
    x, w = jnp.zeros((16, 16)), jnp.zeros((16, 16))

    def twice(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w).sum()

    plain = count_flops(jax.grad(twice, (0, 1)), x, w)
    assert count_flops(jax.grad(jax.checkpoint(twice), (0, 1)), x, w) == plain + 2 * 2 * 16**3


def test_branches_and_convolutions():
    x = jnp.zeros((16, 16))
    branch = count_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, jnp.sin, x), x)
    assert branch == 2 * 2 * 16**3
    image, kernel = jnp.zeros((1, 8, 8, 3)), jnp.zeros((2, 2, 3, 5))
    convolve = lambda i, k: jax.lax.conv_general_dilated(  # noqa: E731
        i, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert count_flops(convolve, image, kernel) == 2 * (4 * 4 * 5) * (2 * 2 * 3)


# GFLOP an image of the training step, from a model of the recipes in plain Python that knows no
# program: projections, attention, heads; drop path skips; 2 a multiply-add.
@pytest.mark.parametrize(
    ("config", "gflop"),
    [
        (vitl16_short.get_config(), 1150.6),
        (vitl14.get_config(), 1380.2),
        (vitg14.get_config(), 4958.9),
    ],
    ids=["L/16 short", "L/14 long", "g/14 long"],
)
def test_recipes(config, gflop):
    flops = step_flops(config)
    assert flops["model"] / 1e9 == pytest.approx(gflop, rel=0.02)
    assert flops["executed"] == flops["model"]


def test_remat_runs_the_students_blocks_once_more():
    config = default.get_config()
    config.model.variant, config.model.remat = "vit_small", "blocks"
    flops = step_flops(config)
    # S/16 short: 95.8 GFLOP an image, of which the student's blocks forward are 22.0. A block's
    # last layer is not run again, since nothing needs its output: 481 kept tokens, 12 blocks.
    again = 22.0 - 481 * 2 * 4 * 384**2 * 12 / 1e9
    assert flops["model"] / 1e9 == pytest.approx(95.8, rel=0.02)
    assert (flops["executed"] - flops["model"]) / 1e9 == pytest.approx(again, rel=0.03)


def test_pointwise_remat_repeats_only_the_logits_of_the_attention():
    config = default.get_config()
    config.model.variant, config.model.remat = "vit_small", "pointwise"
    flops = step_flops(config)
    # 2 N^2 D a kept crop and block: of 2 global crops 197 tokens, of 8 local ones 37, 384 wide.
    logits = 12 * 2 * 384 * (1 - config.model.drop_path_rate) * (2 * 197**2 + 8 * 37**2)
    assert flops["executed"] - flops["model"] == pytest.approx(logits, rel=0.03)


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [(vitl16_short.get_config(), 0.24, 0.26), (vitl14.get_config(), 0.32, 0.34)],
    ids=["rate 0.3", "rate 0.4"],
)
def test_what_skipping_saves_against_masking(config, low, high):
    """A mask computes every residual branch, as a rate of 0 does."""
    skipped = step_flops(config)["model"]
    config.model.drop_path_rate = 0.0
    assert low < 1 - skipped / step_flops(config)["model"] < high


def test_blocks_of_prototypes_are_computed_again():
    config = vitl16_short.get_config()
    config.prototype_block = 8192
    flops = step_flops(config)
    assert flops["model"] / 1e9 == pytest.approx(1150.6, rel=0.02)
    assert flops["executed"] > flops["model"]


def distilling(*students: str) -> float:
    """FLOPs an image where ViT-g/14 teaches."""
    config = vitl14.get_config()
    config.distill.teacher, config.distill.students = "vitg14", students
    config.distill.patches = "masked"
    return step_flops(config)["model"]


def test_students_share_the_pass_of_their_teacher():
    """Twice the teacher's pass is in the sum of both alone, once in both together."""
    large, small = distilling("vitl14"), distilling("vits14")
    shared = large + small - distilling("vitl14", "vits14")
    # ViT-g/14: 1.13 G weights in 40 blocks, 2 global crops of 257 tokens, 2 FLOPs a weight.
    assert shared == pytest.approx(2 * 257 * 2 * 1.13e9, rel=0.1)


def test_features_cost_no_scores():
    """S/14 with ViT-L/14 as its teacher: both networks and two projections of the tokens."""
    config = vits14.get_config()
    config.distill.teacher, config.distill.kind = "vitl14", "features"
    # Tokens of 2 global crops of 257 and 8 local ones of 50; 2 FLOPs a weight and pass. The
    # student's pass has a backward one, twice as dear; the logits of the attention are left out.
    teacher, student = 2 * 257 * 2 * 302e6, 3 * (2 * 257 + 8 * 50) * 2 * 21.3e6
    projections = 3 * (2 * 256 + 10) * 2 * 384 * 1024
    got = step_flops(config)["model"]
    assert got == pytest.approx(teacher + student + projections, rel=0.1)
    assert got > teacher + student + projections
