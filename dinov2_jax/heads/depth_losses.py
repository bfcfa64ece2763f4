"""Losses of depth heads, on differences of logarithms.

Source: FB dinov2/eval/depth/models/losses; Eigen et al. 2014 for the scale-invariant one, Li and
Snavely 2018 (arXiv 1804.00607) for that of differences between neighbours.
"""

import jax
import jax.numpy as jnp
from jax import Array

EPSILON_M = 1e-3  # added to depths before the logarithm
_MEAN_SHARE = 0.15  # weight of the squared mean beside the variance
_STRIDES = (1, 2, 4, 6)


def sig_loss(predicted: Array, true: Array, warm: Array | bool = False) -> Array:
    """The scale-invariant loss sqrt(Var(g) + 0.15 mean(g)^2), g = log(predicted) - log(true).

    Args:
      predicted: metres, of any shape; above -EPSILON_M.
      true: metres, of the same shape; 0 or less where there is no value.
      warm: takes the mean alone, as the reference does in its first 100 steps.

    Returns:
      A scalar over all valid values together. It is 0 where none is valid.
    """
    valid = true > 0
    count = valid.sum()
    g = jnp.where(valid, _log_ratio(predicted, true), 0)
    mean = g.sum() / jnp.maximum(count, 1)
    # Unbiased, as torch.var is. A single value has no variance, and none is nan there.
    spread = jnp.where(valid, jnp.square(g - mean), 0).sum() / jnp.maximum(count - 1, 1)
    square = jnp.where(jnp.asarray(warm), 0, spread) + _MEAN_SHARE * jnp.square(mean)
    # The gradient of a root is infinite at 0, and infinity times 0 is nan.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def grouped_sig_loss(predicted: Array, true: Array, group: int, warm: Array | bool) -> Array:
    """The mean of `sig_loss` over groups of `group` pictures.

    The reference takes the loss over the pictures of one GPU, which are two. A loss over the whole
    batch would let a picture's scale stand in for another's.

    Args:
      predicted, true: metres [B, H, W]; B is a multiple of `group`.
    """
    shape = (-1, group, *predicted.shape[1:])
    return jax.vmap(lambda p, t: sig_loss(p, t, warm))(
        predicted.reshape(shape), true.reshape(shape)
    ).mean()


def gradient_loss(
    predicted: Array, true: Array, axes: tuple[int, int] = (-2, -1), weight: float = 0.5
) -> Array:
    """How much neighbours differ otherwise than in truth, at four scales.

    Sums |g[i] - g[i + 2]| along both axes where both are valid, over the number of valid values;
    then adds the same of each 2nd, 4th and 6th value.

    Args:
      predicted, true: metres, as in `sig_loss`.
      axes: of the differences: rows and columns.
    """
    # DINOv2: the reference takes the first two axes of [B, 1, H, W], so that it compares pictures
    # of the batch, and is exactly 0 for two pictures a GPU. `axes=(0, 1)` gives its values.
    total = jnp.zeros(())
    for stride in _STRIDES:
        p, t = (_every(x, stride, axes) for x in (predicted, true))
        valid = t > 0
        g = jnp.where(valid, _log_ratio(p, t), 0)
        sums = [_differences(g, valid, axis) for axis in axes]
        total += sum(sums) / jnp.maximum(valid.sum(), 1)
    return weight * total


def _log_ratio(predicted: Array, true: Array) -> Array:
    return jnp.log(predicted + EPSILON_M) - jnp.log(jnp.maximum(true, 0) + EPSILON_M)


def _every(x: Array, stride: int, axes: tuple[int, int]) -> Array:
    for axis in axes:
        x = jnp.take(x, jnp.arange(0, x.shape[axis], stride), axis)
    return x


def _differences(g: Array, valid: Array, axis: int) -> Array:
    def ends(x: Array) -> tuple[Array, Array]:
        x = jnp.moveaxis(x, axis, 0)
        return x[:-2], x[2:]

    (first, second), both = ends(g), ends(valid)
    return jnp.where(both[0] & both[1], jnp.abs(first - second), 0).sum()
