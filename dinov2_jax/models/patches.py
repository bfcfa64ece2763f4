"""From pixels to patches, and the initialisation of their projection."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def patchify(images: Array, patch_size: int) -> Array:
    """[..., H, W, C] -> [..., P, patch * patch * C], patches row-major.

    Raises:
      ValueError: when H or W is not a multiple of the patch size.
    """
    *batch, height, width, channels = images.shape
    rows, cols = height // patch_size, width // patch_size
    if height % patch_size or width % patch_size or not rows or not cols:
        near = max(rows, 1) * patch_size, max(cols, 1) * patch_size
        raise ValueError(
            f"an image of {height}x{width} px does not divide into patches of {patch_size} px; "
            f"resize or crop it, for example to {near[0]}x{near[1]}"
        )
    x = images.reshape(*batch, rows, patch_size, cols, patch_size, channels)
    return jnp.swapaxes(x, -4, -3).reshape(*batch, rows * cols, patch_size**2 * channels)


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """torch's default for weight and bias of conv and linear layers: U(+-1 / sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
