"""Mixup, CutMix and label smoothing on the device, inside the step.

Zhang et al. 2018 (arXiv 1710.09412); Yun et al. 2019 (arXiv 1905.04899). The maintained
augmentation libraries for JAX (dm-pix, augmax) work on single pictures and have neither.
"""

import jax
import jax.numpy as jnp
from jax import Array


def smooth_targets(labels: Array, classes: int, smoothing: float) -> Array:
    """int [...] -> fp32 [..., K]: one-hot times 1 - smoothing, plus smoothing over all classes."""
    return (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes


def mix(
    keys: Array,
    images: Array,
    targets: Array,
    *,
    mixup: float,
    cutmix: float,
    switch_probability: float = 0.5,
) -> tuple[Array, Array]:
    """Mixes each picture with the opposite one of its group; a group shares one draw.

    A group is what one GPU mixes in DeiT's pipeline, so nothing crosses devices.

    Args:
      keys: [G], one a group.
      images [G, b, H, W, C], targets [G, b, K].
      mixup, cutmix: alpha of the Beta(alpha, alpha) distribution of the share; 0 turns one off.
        If both are on, a group uses CutMix with `switch_probability`.
    """
    if not mixup and not cutmix:
        return images, targets

    def one(key: Array, images: Array, targets: Array) -> tuple[Array, Array]:
        which, law, box = jax.random.split(key, 3)
        probability = switch_probability if mixup and cutmix else float(bool(cutmix))
        cut = jax.random.bernoulli(which, probability)
        alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0)
        share = jax.random.beta(law, alpha, alpha)
        inside = cut_box(box, share, images.shape[1:3])
        kept = jnp.where(cut, 1 - inside.mean(), share)
        weight = jnp.where(cut, 1.0 - inside, share)[None, ..., None]  # of the picture itself
        mixed = weight * images + (1 - weight) * images[::-1]
        return mixed, kept * targets + (1 - kept) * targets[::-1]

    return jax.vmap(one)(keys, images, targets)


def cut_box(key: Array, share: Array, size: tuple[int, int]) -> Array:
    """fp32 [H, W], 1 inside a box: sides sqrt(1 - share), random centre, cut at the borders."""
    edges = []
    for side, place in zip(size, jax.random.uniform(key, (2,)), strict=True):
        half = jnp.floor(side * jnp.sqrt(1 - share)) // 2
        centre = jnp.floor(place * side)
        pixels = jnp.arange(side)
        edges.append((pixels >= centre - half) & (pixels < centre + half))
    return (edges[0][:, None] & edges[1][None, :]).astype(jnp.float32)
