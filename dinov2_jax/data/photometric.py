"""Colour augmentation in the jitted training step: uint8 crops in, normalised float32 crops out.

The recipe and its numbers are those of DINOv2's data augmentation (torchvision's ColorJitter,
RandomGrayscale, GaussianBlur and RandomSolarize on 8-bit pictures). It works on colour planes
``[..., 3, H, W]`` with values in [0, 255], because the last axis then fills the vector lanes.
Pictures of any number of channels but 3 have no colour: saturation, hue and grayscale are skipped,
and all other operations treat the channels alike.
"""

# DINOv2: the reference works on 8-bit PIL images, so every operation rounds. Here values stay
# float32 in between. The two jitters differ by 1.5 levels of 255 on average and by 7 at the 99th
# percentile (default strengths, 32 px), mostly because Pillow truncates and so is darker. The
# jitter itself changes a value by 32 levels on average.

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The operations of the colour jitter, and the 24 orders they can come in.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.asarray(list(itertools.permutations(range(4))), np.int32)

# Uniform numbers of a crop: jitter or not, order, three factors, hue, gray, blur, sigma, solarize.
# One draw gives all of them, because each further threefry call adds compile time.
DRAWS = 10


@dataclass(frozen=True)
class ColourSpec:
    """Strengths and probabilities of the colour augmentation (the fields of ``config.colour``).

    ``brightness``, ``contrast`` and ``saturation`` x draw a factor from U[max(0, 1-x), 1+x], and
    ``hue`` x draws a shift from U[-x, x] of a turn. ``blur_sigma`` is in pixels; ``mean`` and
    ``std`` are for values in [0, 1].
    """

    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_probability: float = 0.2
    # DINOv2: (global-1, global-2, local). The reference's wrapper hands 1-p to torchvision, so its
    # nominal 1.0/0.1/0.5 becomes 0/0.9/0.5, and the released models were trained that way (the
    # maintainers, in PR 411). We state effective rates; (1.0, 0.1, 0.5) is the paper's recipe.
    blur_probabilities: tuple[float, float, float] = (0.0, 0.9, 0.5)
    blur_kernel: int = 9
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.2
    solarize_threshold: float = 128
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @classmethod
    def from_config(cls, colour: Mapping[str, Any]) -> "ColourSpec":
        """The spec of a ``config.colour`` mapping; lists become tuples so that it can be hashed."""
        values = {field.name: colour[field.name] for field in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()})


def augment_batch(
    key: jax.Array, global_crops: jax.Array, local_crops: jax.Array, spec: ColourSpec
) -> tuple[jax.Array, jax.Array]:
    """Augments and normalises all crops of a batch, each with its own draws.

    Draws depend on the key, which is used up here, and on (image, view) only, so the result is the
    same on any sharding of the image axis. ``global_crops`` are uint8 ``[B, 2, S, S, C]``,
    ``local_crops`` uint8 ``[B, V, s, s, C]``; V may be 0. The results are float32 of these shapes,
    normalised with ``spec.mean`` and ``spec.std``. Raises ValueError if crops are too small for the
    reflected edge of the blur.
    """
    batch, local_views = local_crops.shape[:2]
    uniforms = jax.random.uniform(key, (batch, 2 + local_views, DRAWS))
    first, second, local = spec.blur_probabilities
    views = (first, 0.0), (second, spec.solarize_probability)
    parts = [
        augment_crops(uniforms[:, i : i + 1], global_crops[:, i : i + 1], spec, *probabilities)
        for i, probabilities in enumerate(views)
    ]
    globals_out = jnp.concatenate(parts, axis=1)
    if local_views == 0:
        return globals_out, jnp.zeros(local_crops.shape, jnp.float32)
    return globals_out, augment_crops(uniforms[:, 2:], local_crops, spec, local, 0.0)


def augment_crops(
    uniforms: jax.Array,
    crops: jax.Array,
    spec: ColourSpec,
    blur_probability: float,
    solarize_probability: float,
) -> jax.Array:
    """Augments uint8 crops ``[B, V, H, W, C]`` of one kind, in the reference's order of operations.

    An operation with probability 0 is not compiled. ``uniforms`` ``[B, V, DRAWS]`` from U[0, 1) are
    the only randomness. Returns float32 ``[B, V, H, W, C]``, normalised.
    """
    gray, blurred, sigma, solarized = (uniforms[..., i] for i in range(6, DRAWS))
    planes = to_planes(crops)
    if spec.jitter_probability > 0:
        planes = jitter(planes, *draw_jitter(uniforms[..., :6], spec))
    if spec.grayscale_probability > 0 and crops.shape[-1] == 3:
        planes = jnp.where(_spread(gray < spec.grayscale_probability), luma(planes), planes)
    if blur_probability > 0:
        low, high = spec.blur_sigma
        taps = blur_taps(low + sigma * (high - low), blurred < blur_probability, spec.blur_kernel)
        planes = blur(planes, taps)
    if solarize_probability > 0:
        chosen = _spread(solarized < solarize_probability)
        planes = jnp.where(chosen, solarize(planes, spec.solarize_threshold), planes)
    return normalize(jnp.moveaxis(planes, -3, -1), spec.mean, spec.std)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Images ``[..., H, W, C]`` of 0 to 255 to float32 ``(image / 255 - mean) / std``."""
    leading = (1,) * (images.ndim - 1)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(*leading, -1) for x in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def to_planes(images: jax.Array) -> jax.Array:
    """``[..., H, W, C]`` to float32 planes ``[..., C, H, W]``, values unchanged."""
    return jnp.moveaxis(images, -1, -3).astype(jnp.float32)


def draw_jitter(uniforms: jax.Array, spec: ColourSpec) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Turns ``[..., 6]`` uniform numbers into the colour jitter of as many crops.

    These are ``order`` int ``[..., 4]``, a permutation of the four operations; ``factors``
    ``[..., 3]`` of brightness, contrast and saturation; ``turn`` ``[...]``, the hue shift in turns.
    Crops that are left alone get factors 1 and turn 0.
    """
    chosen = uniforms[..., 0] < spec.jitter_probability
    order = jnp.asarray(ORDERS)[(uniforms[..., 1] * len(ORDERS)).astype(jnp.int32)]
    strength = np.asarray([spec.brightness, spec.contrast, spec.saturation], np.float32)
    strength = strength.reshape((1,) * (uniforms.ndim - 1) + (3,))
    low, high = np.maximum(1 - strength, 0), 1 + strength
    factors = low + uniforms[..., 2:5] * (high - low)
    turn = (2 * uniforms[..., 5] - 1) * spec.hue
    return order, jnp.where(chosen[..., None], factors, 1.0), jnp.where(chosen, turn, 0.0)


def jitter(planes: jax.Array, order: jax.Array, factors: jax.Array, turn: jax.Array) -> jax.Array:
    """Applies brightness, contrast, saturation and hue to ``[..., 3, H, W]`` in the order given.

    The first three are one operation, a clamped blend with black, the mean grey or the grey picture
    (torchvision's definition). So each of the four places costs one blend, one hue rotation and a
    select. With any number of planes but 3, saturation and hue change nothing.
    """
    # By operation; at the place of hue the blend is discarded.
    factors = jnp.concatenate([factors, jnp.ones_like(factors[..., :1])], axis=-1)
    factors = jnp.take_along_axis(factors, order, axis=-1)
    return jax.lax.platform_dependent(
        planes, order, factors, turn, cuda=jitter_in_two_passes, default=jitter_by_places
    )


def jitter_by_places(
    planes: jax.Array, order: jax.Array, factors: jax.Array, turn: jax.Array
) -> jax.Array:
    """One place after the other; ``factors`` ``[..., 4]`` are by place."""

    def apply_place(place: jax.Array, planes: jax.Array) -> jax.Array:
        operation = order[..., place]
        mean = jnp.where(operation == CONTRAST, luma(planes).mean((-3, -2, -1)), 0.0)
        blended = _blend(planes, luma(planes), operation, factors[..., place], mean)
        if planes.shape[-3] == 3:
            return jnp.where(_spread(operation == HUE), rotate_hue(planes, turn), blended)
        return jnp.where(_spread(operation < SATURATION), blended, planes)

    # A loop, because XLA fuses nothing into or out of one. Unrolled, XLA's CPU backend computes all
    # four places again for each tap of a blur.
    return jax.lax.fori_loop(0, order.shape[-1], apply_place, planes)


def jitter_in_two_passes(
    planes: jax.Array, order: jax.Array, factors: jax.Array, turn: jax.Array
) -> jax.Array:
    """As `jitter_by_places`, but all except contrast's mean grey is computed pixel by pixel.

    The first pass computes what comes before contrast, for the mean; the second everything. The
    channels stay apart: a kernel would compute all three again for each channel of the next place.
    """
    before = jnp.cumsum(order == CONTRAST, axis=-1) == 0
    channels = [planes[..., i : i + 1, :, :] for i in range(planes.shape[-3])]
    neutral = jnp.where(before, factors, 1.0)
    earlier = _all_places(channels, order, neutral, turn, jnp.zeros_like(turn), before)
    mean = jax.lax.optimization_barrier(_grey(earlier).mean((-3, -2, -1)))
    channels = _all_places(channels, order, factors, turn, mean, jnp.ones_like(before))
    # Else a blur computes all of it for each tap.
    return jnp.concatenate(jax.lax.optimization_barrier(channels), axis=-3)


def _all_places(
    channels: list[jax.Array],
    order: jax.Array,
    factors: jax.Array,
    turn: jax.Array,
    mean: jax.Array,
    active: jax.Array,
) -> list[jax.Array]:
    """The four places for channels ``[..., 1, H, W]``; hue only where ``active`` ``[..., 4]``."""
    for place in range(order.shape[-1]):
        operation, grey = order[..., place], _grey(channels)
        target = jnp.where(operation == CONTRAST, mean, 0.0)
        blended = [_blend(x, grey, operation, factors[..., place], target) for x in channels]
        if len(channels) == 3:
            value, chroma, hue = _rotated(channels, turn)
            rotated = [_channel(value, chroma, hue, start) for start in _STARTS]
            turned = _spread((operation == HUE) & active[..., place])
            channels = [jnp.where(turned, *pair) for pair in zip(rotated, blended, strict=True)]
        else:
            kept = _spread(operation < SATURATION)
            channels = [jnp.where(kept, *pair) for pair in zip(blended, channels, strict=True)]
    return channels


def _blend(
    planes: jax.Array, grey: jax.Array, operation: jax.Array, factor: jax.Array, mean: jax.Array
) -> jax.Array:
    """Brightness, contrast or saturation of each crop; ``mean`` is 0 unless for contrast."""
    target = jnp.where(_spread(operation == SATURATION), grey, _spread(mean))
    factor = _spread(factor)
    return jnp.clip(factor * planes + (1 - factor) * target, 0, 255)


def luma(planes: jax.Array) -> jax.Array:
    """ITU-R 601 grey ``[..., 1, H, W]`` of ``[..., 3, H, W]``; the mean of other channels."""
    if planes.shape[-3] != 3:
        return planes.mean(-3, keepdims=True)
    return _grey([planes[..., i : i + 1, :, :] for i in range(3)])


def _grey(channels: list[jax.Array]) -> jax.Array:
    if len(channels) != 3:
        return sum(channels[1:], start=channels[0]) / len(channels)
    return 0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]


_STARTS = (5.0, 3.0, 1.0)  # of the channels, see `_channel`


def rotate_hue(planes: jax.Array, turn: jax.Array) -> jax.Array:
    """Adds ``turn`` (one value a crop, |turn| <= 0.5, in full turns) to the hue of the HSV form.

    Value and saturation stay. Hue is kept in sixths of a turn times the chroma, so there is no
    division and grey pixels need no special case.
    """
    value, chroma, hue = _rotated([planes[..., i : i + 1, :, :] for i in range(3)], turn)
    starts = jnp.asarray(_STARTS).reshape((1,) * (planes.ndim - 3) + (3, 1, 1))
    return _channel(value, chroma, hue, starts)


def _rotated(channels: list[jax.Array], turn: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Value, chroma, and the new hue times the chroma, each ``[..., 1, H, W]``."""
    red, green, blue = channels
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    # Sectors by >=, not by `value == red`: two fusions may round the same colour differently, and a
    # failed equality moves a pixel to a far hue.
    not_red = jnp.where(green >= blue, 2 * chroma + blue - red, 4 * chroma + red - green)
    is_red = (red >= green) & (red >= blue)
    hue = jnp.where(is_red, green - blue, not_red) + 6 * _spread(turn) * chroma
    hue = jnp.where(hue < 0, hue + 6 * chroma, hue)
    return value, chroma, jnp.where(hue >= 6 * chroma, hue - 6 * chroma, hue)


def _channel(
    value: jax.Array, chroma: jax.Array, hue: jax.Array, start: jax.Array | float
) -> jax.Array:
    # value - chroma * clip(min(k, 4 - k), 0, 1) with k = (hue + start) mod 6
    k = hue + start * chroma
    k = jnp.where(k >= 6 * chroma, k - 6 * chroma, k)
    return value - jnp.clip(jnp.minimum(k, 4 * chroma - k), 0, chroma)


def blur_taps(sigma_px: jax.Array, chosen: jax.Array, taps: int) -> jax.Array:
    """Gaussian taps ``[..., taps]`` of sum 1; a single 1 in the middle where not ``chosen``."""
    offset_px = jnp.arange(taps) - taps // 2
    offset_px = offset_px.reshape((1,) * sigma_px.ndim + (taps,)).astype(jnp.float32)
    weights = jnp.exp(-0.5 * (offset_px / sigma_px[..., None]) ** 2)
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.where(chosen[..., None], weights, (offset_px == 0).astype(jnp.float32))


def blur(planes: jax.Array, taps: jax.Array) -> jax.Array:
    """Separable blur of ``[..., C, H, W]``, reflected at the edges, with one row of taps a crop.

    ``taps`` are ``[..., n]``, n odd; symmetric, as those of `blur_taps` are. Raises ValueError if a
    side is so short that the reflection would have to be reflected again.
    """
    for axis in (-2, -1):
        planes = jax.lax.optimization_barrier(_blur_along(planes, taps, axis))
    return planes


def _blur_along(planes: jax.Array, taps: jax.Array, axis: int) -> jax.Array:
    """Sums shifted planes: 9 products a pixel, where a banded matrix has one for each row."""
    count, side_px = taps.shape[-1], planes.shape[axis]
    half = count // 2
    if side_px <= half:
        raise ValueError(
            f"A crop side of {side_px} px is too short for {count} blur taps: their edge needs "
            f"{half + 1} px; use larger crops or colour.blur_kernel={2 * side_px - 1} or less."
        )
    widths = [(half * (i == axis % planes.ndim),) * 2 for i in range(planes.ndim)]
    padded = jax.lax.platform_dependent(
        planes,
        cuda=lambda x: reflected_as_sum(x, half, axis),
        # The barriers, here and in `blur`, halve its time on CPU.
        default=lambda x: jax.lax.optimization_barrier(jnp.pad(x, widths, mode="reflect")),
    )

    def shifted(by_px: int) -> jax.Array:
        return jax.lax.slice_in_dim(padded, by_px, by_px + side_px, axis=axis)

    total = _spread(taps[..., half]) * shifted(half)
    for tap in range(half):
        total += _spread(taps[..., tap]) * (shifted(tap) + shifted(count - 1 - tap))
    return total


def reflected_as_sum(planes: jax.Array, edge_px: int, axis: int) -> jax.Array:
    """Planes with reflected edges, as a sum of three with zeros around: a GPU need not store it."""
    side_px = planes.shape[axis]
    first = jax.lax.slice_in_dim(planes, 1, edge_px + 1, axis=axis)
    last = jax.lax.slice_in_dim(planes, side_px - 1 - edge_px, side_px - 1, axis=axis)

    def placed(x: jax.Array, start: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (start, side_px + 2 * edge_px - start - x.shape[axis])
        return jnp.pad(x, widths)

    ends = placed(jnp.flip(first, axis), 0) + placed(jnp.flip(last, axis), side_px + edge_px)
    return placed(planes, edge_px) + ends


def solarize(planes: jax.Array, threshold: float) -> jax.Array:
    """Inverts values at and above ``threshold`` (both in [0, 255])."""
    return jnp.where(planes >= threshold, 255 - planes, planes)


def _spread(per_crop: jax.Array) -> jax.Array:
    """One number a crop -> [..., 1, 1, 1], to broadcast over its planes [C, H, W]."""
    return per_crop[..., None, None, None]
