"""KoLeo: a regulariser that spreads the cls tokens of a group (paper section 4)."""

import jax.numpy as jnp
from jax import Array


def koleo_loss(features: Array) -> Array:
    """Kozachenko-Leonenko regulariser: -mean log distance to the nearest neighbour in the group.

    Computed in fp32; precision="highest" keeps a GPU or TPU from rounding the products.

    Args:
      features: [..., n, D], n >= 2; every leading index is a group of its own.

    Returns:
      Mean over groups.
    """
    x = features.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16))
    x = x / norm
    dots = jnp.einsum("...id,...jd->...ij", x, x, precision="highest")
    own = jnp.eye(x.shape[-2], dtype=bool)
    # DINOv2: the reference sets the diagonal to -1, so that a vector whose neighbours all are
    # opposite to it could pick itself.
    nearest = jnp.argmax(jnp.where(own, -jnp.inf, dots), axis=-1)
    neighbour = jnp.take_along_axis(x, nearest[..., None], axis=-2)
    # torch's pairwise distance adds its eps to every component of the difference.
    distance = jnp.linalg.norm(x - neighbour + 1e-8, axis=-1)
    return -jnp.mean(jnp.log(distance + 1e-8))
