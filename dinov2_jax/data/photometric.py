"""Colour augmentation on the accelerator: uint8 crops in, normalised float32 crops out.

The host sends geometry only (crop, flip) as uint8; everything below runs inside the jitted training
step. The recipe and its numbers are those of DINOv2's data augmentation (torchvision's ColorJitter,
RandomGrayscale, GaussianBlur and RandomSolarize on 8-bit pictures). Work is done on colour planes
``[..., 3, H, W]`` with values in [0, 255], because the last axis then fills the vector lanes.

DINOv2: the reference works on 8-bit PIL images, so every operation ends in a rounding (a truncation
in PIL's blend). Here values stay float32 between operations. Jitter, grayscale and solarize in random
order then differ from the Pillow chain by 1.1 grey levels of 255 on average (0.6 of it is the
downward bias of the truncations) and by 3 at the 99th percentile, well under the +-102 of the jitter
itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp

# Positions of the four operations in the order drawn by `draw_jitter`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class ColourSpec:
    """Strengths and probabilities of the colour augmentation (the fields of ``config.colour``).

    ``brightness``, ``contrast`` and ``saturation`` x draw a factor from U[max(0, 1-x), 1+x]; ``hue`` x
    a shift from U[-x, x] of a full turn. ``blur_sigma`` is in pixels. ``mean`` and ``std`` are for
    values in [0, 1].
    """

    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_probability: float = 0.2
    # DINOv2: (global-1, global-2, local). The reference's wrapper hands 1-p to torchvision, so its
    # nominal 1.0/0.1/0.5 becomes 0/0.9/0.5, and the released models were trained that way (maintainers
    # in PR 411). We state the effective rates; (1.0, 0.1, 0.5) is what the paper describes.
    blur_probabilities: tuple[float, float, float] = (0.0, 0.9, 0.5)
    blur_kernel: int = 9
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.2
    solarize_threshold: float = 128
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"colour.hue is {self.hue}, a part of a full turn: give 0 to 0.5.")
        if self.blur_kernel % 2 == 0 or self.blur_kernel < 1:
            raise ValueError(
                f"colour.blur_kernel is {self.blur_kernel}: give an odd number of taps."
            )
        if min(self.blur_sigma) <= 0:
            raise ValueError(f"colour.blur_sigma is {self.blur_sigma}: both ends must be above 0.")

    @classmethod
    def from_config(cls, colour: Mapping[str, Any]) -> ColourSpec:
        """The spec of a ``config.colour`` mapping; sequences become tuples so that it is hashable."""
        values = {field.name: colour[field.name] for field in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()})


def augment_batch(
    key: jax.Array, global_crops: jax.Array, local_crops: jax.Array, spec: ColourSpec
) -> tuple[jax.Array, jax.Array]:
    """Augments and normalises all crops of a batch, each with its own draws.

    Draws depend on the key and on (image, view) only, so the result is the same on any sharding of the
    image axis. 64 pictures with 2x32 + 8x16 px crops take 6 ms on two CPU cores.

    Args:
      key: one PRNG key, used up here.
      global_crops: uint8 ``[B, 2, S, S, 3]``.
      local_crops: uint8 ``[B, V, s, s, 3]``; V may be 0.
      spec: strengths and probabilities.

    Returns:
      float32 arrays of the shapes given, normalised with ``spec.mean`` and ``spec.std``.
    """
    first_key, second_key, local_key = jax.random.split(key, 3)
    first_blur, second_blur, local_blur = spec.blur_probabilities
    first = augment_crops(first_key, global_crops[:, :1], spec, first_blur, 0.0)
    second = augment_crops(
        second_key, global_crops[:, 1:], spec, second_blur, spec.solarize_probability
    )
    globals_out = jnp.concatenate([first, second], axis=1)
    if local_crops.shape[1] == 0:
        return globals_out, jnp.zeros(local_crops.shape, jnp.float32)
    return globals_out, augment_crops(local_key, local_crops, spec, local_blur, 0.0)


def augment_crops(
    key: jax.Array,
    crops: jax.Array,
    spec: ColourSpec,
    blur_probability: float,
    solarize_probability: float,
) -> jax.Array:
    """uint8 crops ``[B, V, H, W, 3]`` of one kind of view to normalised float32, reference order.

    A probability of 0 removes its operation from the program.
    """
    jitter_key, gray_key, blur_key, sigma_key, solarize_key = jax.random.split(key, 5)
    shape = crops.shape[:2]
    planes = to_planes(crops)
    if spec.jitter_probability > 0:
        planes = jitter(planes, *draw_jitter(jitter_key, shape, spec))
    if spec.grayscale_probability > 0:
        chosen = jax.random.bernoulli(gray_key, spec.grayscale_probability, shape)
        planes = jnp.where(_spread(chosen), luma(planes), planes)
    if blur_probability > 0:
        chosen = jax.random.bernoulli(blur_key, blur_probability, shape)
        low, high = spec.blur_sigma
        sigma_px = jax.random.uniform(sigma_key, shape, minval=low, maxval=high)
        planes = blur(planes, blur_taps(sigma_px, chosen, spec.blur_kernel))
    if solarize_probability > 0:
        chosen = jax.random.bernoulli(solarize_key, solarize_probability, shape)
        planes = jnp.where(_spread(chosen), solarize(planes, spec.solarize_threshold), planes)
    return _standardize(jnp.moveaxis(planes, -3, -1), spec.mean, spec.std)


def normalize(
    images: jax.Array,
    mean: tuple[float, ...] = ColourSpec.mean,
    std: tuple[float, ...] = ColourSpec.std,
) -> jax.Array:
    """uint8 images ``[..., H, W, 3]`` to float32 ``(image / 255 - mean) / std``."""
    return _standardize(images.astype(jnp.float32), mean, std)


def to_planes(images: jax.Array) -> jax.Array:
    """``[..., H, W, 3]`` to float32 planes ``[..., 3, H, W]``, values unchanged."""
    return jnp.moveaxis(images, -1, -3).astype(jnp.float32)


def draw_jitter(
    key: jax.Array, shape: tuple[int, ...], spec: ColourSpec
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the colour jitter of crops laid out as ``shape``.

    Returns:
      ``order`` int ``shape + (4,)``, a random permutation of the four operations; ``factors``
      ``shape + (3,)`` for brightness, contrast, saturation; ``turn`` ``shape``, the hue shift in turns.
      Crops that are left alone get factors 1 and turn 0.
    """
    apply_key, order_key, factor_key, hue_key = jax.random.split(key, 4)
    chosen = jax.random.bernoulli(apply_key, spec.jitter_probability, shape)
    order = jnp.argsort(jax.random.uniform(order_key, (*shape, 4)), axis=-1)
    strength = jnp.asarray([spec.brightness, spec.contrast, spec.saturation])
    low, high = jnp.maximum(1 - strength, 0), 1 + strength
    unit = jax.random.uniform(factor_key, (*shape, 3))
    leading = (1,) * len(shape)
    low, high = low.reshape(*leading, 3), high.reshape(*leading, 3)
    factors = jnp.where(chosen[..., None], low + unit * (high - low), 1.0)
    turn = jax.random.uniform(hue_key, shape, minval=-spec.hue, maxval=spec.hue)
    return order, factors, jnp.where(chosen, turn, 0.0)


def jitter(planes: jax.Array, order: jax.Array, factors: jax.Array, turn: jax.Array) -> jax.Array:
    """Applies brightness, contrast, saturation and hue to ``[..., 3, H, W]`` in the order given.

    Brightness, contrast and saturation are one operation, a clamped blend with black, the mean grey or
    the grey picture (torchvision's definition). So each of the four places costs one blend and one hue
    rotation, of which a select keeps the right one, instead of four operations.
    """
    for place in range(4):
        operation = order[..., place]
        grey = luma(planes)
        mean_grey = jnp.where(operation == CONTRAST, grey.mean((-3, -2, -1)), 0.0)
        target = jnp.where(_spread(operation == SATURATION), grey, _spread(mean_grey))
        slot = jnp.minimum(operation, SATURATION)  # at the place of hue the blend is discarded
        factor = _spread(jnp.take_along_axis(factors, slot[..., None], axis=-1)[..., 0])
        blended = jnp.clip(factor * planes + (1 - factor) * target, 0, 255)
        planes = jnp.where(_spread(operation == HUE), rotate_hue(planes, turn), blended)
    return planes


def luma(planes: jax.Array) -> jax.Array:
    """ITU-R 601 grey ``[..., 1, H, W]`` of ``[..., 3, H, W]``."""
    red, green, blue = planes[..., 0:1, :, :], planes[..., 1:2, :, :], planes[..., 2:3, :, :]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def rotate_hue(planes: jax.Array, turn: jax.Array) -> jax.Array:
    """Adds ``turn`` (one value a crop, |turn| <= 0.5, in full turns) to the hue of the HSV form.

    Value and saturation stay. Hue is kept in sixths of a turn times the chroma, so there is no division
    and grey pixels need no special case.
    """
    red, green, blue = planes[..., 0:1, :, :], planes[..., 1:2, :, :], planes[..., 2:3, :, :]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    not_red = jnp.where(value == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = jnp.where(value == red, green - blue, not_red) + 6 * _spread(turn) * chroma
    # Channel c of an HSV colour is value - chroma * clip(min(k, 4 - k), 0, 1), k = hue + 5, 3 or 1 mod 6.
    start = jnp.asarray([5.0, 3.0, 1.0]).reshape((1,) * (planes.ndim - 3) + (3, 1, 1))
    k = hue + start * chroma
    k = jnp.where(k < 0, k + 6 * chroma, k)
    k = jnp.where(k >= 6 * chroma, k - 6 * chroma, k)
    return value - jnp.clip(jnp.minimum(k, 4 * chroma - k), 0, chroma)


def blur_taps(sigma_px: jax.Array, chosen: jax.Array, taps: int) -> jax.Array:
    """Gaussian taps ``[..., taps]`` that sum to 1; a single 1 in the middle where not ``chosen``."""
    offset_px = jnp.arange(taps) - taps // 2
    offset_px = offset_px.reshape((1,) * sigma_px.ndim + (taps,)).astype(jnp.float32)
    weights = jnp.exp(-0.5 * (offset_px / sigma_px[..., None]) ** 2)
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.where(chosen[..., None], weights, (offset_px == 0).astype(jnp.float32))


def blur(planes: jax.Array, taps: jax.Array) -> jax.Array:
    """Separable blur of ``[..., 3, H, W]`` with one row of taps a crop, reflected at the edges.

    Shifted adds rather than `lax.conv`: with a kernel of its own for each crop that would be a grouped
    convolution, which is slow on CPU, and its matrix units would round to TF32 or bf16.
    """
    return _blur_axis(_blur_axis(planes, taps, planes.ndim - 2), taps, planes.ndim - 1)


def solarize(planes: jax.Array, threshold: float) -> jax.Array:
    """Inverts values at and above ``threshold`` (both in [0, 255])."""
    return jnp.where(planes >= threshold, 255 - planes, planes)


def _blur_axis(planes: jax.Array, taps: jax.Array, axis: int) -> jax.Array:
    count, size = taps.shape[-1], planes.shape[axis]
    half = count // 2
    if size <= half:
        raise ValueError(
            f"A crop side of {size} px cannot be blurred with {count} taps, whose reflected edge needs "
            f"{half + 1} px: use larger crops, or set colour.blur_kernel to {2 * size - 1} or less."
        )
    widths = [(half, half) if i == axis else (0, 0) for i in range(planes.ndim)]
    padded = jnp.pad(planes, widths, mode="reflect")
    shifted = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(count))
    return sum(_spread(taps[..., i]) * part for i, part in enumerate(shifted))


def _spread(per_crop: jax.Array) -> jax.Array:
    """One number a crop, given the axes [3, H, W] of its planes."""
    return per_crop[..., None, None, None]


def _standardize(values: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    leading = (1,) * (values.ndim - 1)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(*leading, -1) for x in (mean, std))
    return (values / 255 - mean) / std
