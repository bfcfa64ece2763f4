"""Segmentation of whole pictures by sliding windows, at several scales, and mirrored.

Source: mmsegmentation 0.27 (encoder_decoder.py, test_time_aug.py), with which the reference judges.
Pictures have many sizes, and each new shape compiles. So windows go through the backbone in powers
of two, and all that depends on the picture's size happens on canvases whose sides are multiples of
64 px, with the true places as arrays.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.models.maps import resize, sources

# Normalised windows [n, h, w, C] -> logits [n, h', w', K] at the head's own resolution.
Forward = Callable[[np.ndarray], Array]
_STEP_PX = 64  # between the sides of two canvases
_STRIP_ROWS = 64  # of the picture, that have their probabilities in one program
_MOST = 8  # windows of one program


class View(NamedTuple):
    """A picture as the model is shown it: normalised [H, W, C], perhaps mirrored."""

    image: np.ndarray
    mirrored: bool = False


class Canvas(NamedTuple):
    """Logits of a view: the first `size` of `values` [Hc, Wc, K] are its own, the rest is 0."""

    values: Array
    size: tuple[int, int]


def boxes(size: tuple[int, int], crop: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Windows as (top, bottom, left, right), row by row; the last ones are shifted back inside.

    Args:
      size: H, W.
      crop: px of a side; 0 for a single window, the whole picture.
      stride: px between two windows.
    """
    if not crop:
        return [(0, size[0], 0, size[1])]
    rows, cols = (_spans(side, crop, stride) for side in size)
    return [(*row, *col) for row in rows for col in cols]


def _spans(side: int, crop: int, stride: int) -> list[tuple[int, int]]:
    count = max(side - crop + stride - 1, 0) // stride + 1
    ends = (min(i * stride + crop, side) for i in range(count))
    return [(max(end - crop, 0), end) for end in ends]


def slide(forward: Forward, image: np.ndarray, crop: int, stride: int, multiple: int = 1) -> Canvas:
    """Logits of a view: the mean over the windows that cover a pixel.

    Args:
      image: normalised [H, W, C].
      crop, stride: px, see `boxes`.
      multiple: windows of a call of `forward` are a multiple of this, the number of devices.
    """
    size = image.shape[0], image.shape[1]
    places = boxes(size, crop, stride)
    window = places[0][1] - places[0][0], places[0][3] - places[0][2]
    sides = _rounded(size[0], _STEP_PX), _rounded(size[1], _STEP_PX)
    total = count = None
    for part in _parts(places, multiple):
        cut = np.stack([image[top:bottom, left:right] for top, bottom, left, right in part])
        padding = [(0, -len(part) % multiple)] + [(0, 0)] * 3
        logits = forward(np.pad(cut, padding))[: len(part)]
        if total is None:
            total = jnp.zeros((*sides, logits.shape[-1]))
            count = jnp.zeros((*sides, 1))
        corners = np.array([(top, left) for top, _, left, _ in part], np.int32)
        total, count = _add(total, count, logits, corners, window)
    return Canvas(_mean(total, count), size)


def _rounded(side: int, step: int) -> int:
    return -(-side // step) * step


def _parts(places: list, multiple: int) -> Iterator[list]:
    """Splits windows into powers of two, as large as possible; with devices, into full calls."""
    most, start = _MOST * multiple, 0
    while start < len(places):
        left = min(len(places) - start, most)
        length = left if multiple > 1 else 1 << (left.bit_length() - 1)
        yield places[start : start + length]
        start += length


@functools.partial(jax.jit, static_argnames="window", donate_argnums=(0, 1))
def _add(
    total: Array, count: Array, logits: Array, corners: Array, window: tuple[int, int]
) -> tuple[Array, Array]:
    """Adds the logits of some windows, resized to their px, at their corners."""
    ones = jnp.ones((*window, 1))

    def put(i: Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
        at = corners[i, 0], corners[i, 1], 0
        added = resize(logits[i], window), ones
        return tuple(  # type: ignore[return-value]
            jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, at, y.shape) + y, at)
            for x, y in zip(both, added, strict=True)
        )

    return jax.lax.fori_loop(0, len(logits), put, (total, count))


@functools.partial(jax.jit, donate_argnums=0)
def _mean(total: Array, count: Array) -> Array:
    return total / jnp.maximum(count, 1)


# ---------------------------------------------------------------------- at the picture's own size
def logits_at(canvas: Canvas, size: tuple[int, int]) -> np.ndarray:
    """Resizes the logits of a view to the picture, [H, W, K]."""
    strips = [np.asarray(_strip(canvas.values, *places)) for places in _strips(canvas, size, False)]
    return np.concatenate(strips)[: size[0], : size[1]]


def segment(
    forward: Forward,
    views: Sequence[View] | Iterator[View],
    size: tuple[int, int],
    crop: int,
    stride: int,
    multiple: int = 1,
) -> np.ndarray:
    """The likeliest class of each pixel by the mean probability over all views.

    Args:
      views: of one picture, at several scales and mirrored.
      size: H, W of the picture.
      crop, stride, multiple: see `slide`.

    Returns:
      uint8 [H, W], or uint16 for more than 255 classes.
    """
    sums = probabilities(forward, views, size, crop, stride, multiple)
    classes = np.concatenate([np.asarray(_likeliest(x)) for x in sums])[: size[0], : size[1]]
    return classes.astype(np.uint8 if sums[0].shape[-1] <= 255 else np.uint16)


def probabilities(
    forward: Forward,
    views: Sequence[View] | Iterator[View],
    size: tuple[int, int],
    crop: int,
    stride: int,
    multiple: int = 1,
) -> list[Array]:
    """Sums of probabilities over views, in strips [rows, Wc, K] that hold the picture and more."""
    sums: list[Array] = []
    for image, mirrored in views:
        canvas = slide(forward, image, crop, stride, multiple)
        parts = _strips(canvas, size, mirrored)
        found = (_probable(canvas.values, *places) for places in parts)
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else list(found)
    return sums


def _strips(canvas: Canvas, size: tuple[int, int], mirrored: bool) -> Iterator[tuple[tuple, tuple]]:
    """Where the rows and columns of each strip come from on a canvas."""
    rows, cols = (sources(new, old, False) for new, old in zip(size, canvas.size, strict=True))
    if mirrored:
        cols = tuple(x[::-1] for x in cols)
    wide = _padded(cols, _rounded(size[1], _STEP_PX))
    for start in range(0, size[0], _STRIP_ROWS):
        yield _padded(tuple(x[start : start + _STRIP_ROWS] for x in rows), _STRIP_ROWS), wide


def _padded(places: tuple[np.ndarray, ...], length: int) -> tuple[np.ndarray, ...]:
    lower, upper, share = (np.pad(x, (0, length - len(x)), mode="edge") for x in places)
    return lower.astype(np.int32), upper.astype(np.int32), share.astype(np.float32)


def _resized(values: Array, rows: tuple, cols: tuple) -> Array:
    """Rows and columns that are taken from [Hc, Wc, K], bilinearly."""
    lower, upper, share = rows
    x = values[lower] * (1 - share)[:, None, None] + values[upper] * share[:, None, None]
    lower, upper, share = cols
    return x[:, lower] * (1 - share)[:, None] + x[:, upper] * share[:, None]


_strip = jax.jit(_resized)


@jax.jit
def _likeliest(sums: Array) -> Array:
    return sums.argmax(axis=-1)


@jax.jit
def _probable(values: Array, rows: tuple, cols: tuple) -> Array:
    return jax.nn.softmax(_resized(values, rows, cols))
