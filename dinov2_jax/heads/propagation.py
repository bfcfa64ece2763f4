"""Objects followed through a video: each patch takes the labels of the patches that it resembles.

Nothing is trained. Source: the video object segmentation of DINO (Caron et al. 2021, section 4.2.2;
Jabri et al. 2020), which the DINOv2 paper does not evaluate.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from dinov2_jax.features.search import top_columns
from dinov2_jax.models.maps import resize
from dinov2_jax.parallel.constraints import constrain_batch

# Similarities of a block of patches with all patches of the context that are in memory at once.
_MOST_SIMILARITIES = 2**25
_ROWS = 64  # a block has a multiple of these, which divide over most numbers of devices
_LEAST_CHANNELS = 4


class Rule(NamedTuple):
    """How the patches of earlier frames vote.

    Attributes:
      radius: rows and columns that a voter may be away; 0: any number.
      top_k: voters of a patch, over all frames of the context together; equal ones all vote.
      temperature: of their weights exp(cosine / temperature).
    """

    radius: int = 12
    top_k: int = 5
    temperature: float = 0.1


class Memory(NamedTuple):
    """Frames that vote: the first one, and the last few before the present one.

    Attributes:
      features: [S, N, D] fp32, of norm 1; frame 0 of the video in slot 0.
      labels: [S, N, K], true ones in slot 0, propagated ones in the others.
      used: bool [S].
    """

    features: Array
    labels: Array
    used: Array


def one_hot(classes: np.ndarray, grid: tuple[int, int], objects: int) -> np.ndarray:
    """The labels of the first frame's patches, fp32 [N, K].

    Args:
      classes: uint8 [H, W]; 0 is the background.
      grid: rows and columns of patches; the classes are resized to it, nearest.
      objects: how many there are. K is greater, so that few programs serve all videos; channels of
        no object stay 0.
    """
    small = _resized(classes, grid).ravel()
    channels = max(_LEAST_CHANNELS, 2 ** math.ceil(math.log2(objects + 1)))
    return (small[:, None] == np.arange(channels)).astype(np.float32)


def _resized(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes classes [H, W] to `size` by Pillow's nearest, as the reference does."""
    return np.asarray(Image.fromarray(classes).resize(size[::-1], Image.Resampling.NEAREST))


def begin(features: Array, labels: Array, context: int) -> Memory:
    """The memory after the first frame.

    Args:
      features: [N, D] of any norm.
      labels: [N, K].
      context: how many preceding frames vote beside the first one.
    """
    slots = 1 + context
    empty = Memory(
        jnp.zeros((slots, *features.shape)),
        jnp.zeros((slots, *labels.shape)),
        jnp.zeros(slots, bool),
    )
    return _store(empty, _unit(jnp.asarray(features)), jnp.asarray(labels), 0)


@functools.partial(jax.jit, static_argnames=("grid", "rule"), donate_argnames="memory")
def propagate(
    memory: Memory, features: Array, frame: Array | int, *, grid: tuple[int, int], rule: Rule
) -> tuple[Memory, Array]:
    """Labels the patches of one frame, and remembers them. Under a mesh its devices share them.

    Args:
      memory: of all frames before; it is overwritten.
      features: [N, D] of any norm.
      frame: number of the frame, 1 or more; frames must come in order.
      grid: rows and columns of patches.
      rule: how they vote.

    Returns:
      The memory, and labels fp32 [N, K] that sum to 1 over K.
    """
    targets, labels = _unit(features), _vote(memory, _unit(features), grid, rule)
    preceding = len(memory.used) - 1
    if preceding:
        memory = _store(memory, targets, labels, 1 + (frame - 1) % preceding)
    return memory, labels


def _unit(features: Array) -> Array:
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, 1e-12)


def _store(memory: Memory, features: Array, labels: Array, slot: Array | int) -> Memory:
    return Memory(
        memory.features.at[slot].set(features),
        memory.labels.at[slot].set(labels),
        memory.used.at[slot].set(True),
    )


def _vote(memory: Memory, targets: Array, grid: tuple[int, int], rule: Rule) -> Array:
    """Labels [N, K] of unit features [N, D], block by block."""
    count = len(targets)
    voters, labels = (x.reshape(-1, x.shape[-1]) for x in (memory.features, memory.labels))
    whole = -(-count // _ROWS) * _ROWS
    rows = max(1, min(whole, _MOST_SIMILARITIES // len(voters)) // _ROWS) * _ROWS
    blocks = -(-count // rows)
    fill = blocks * rows - count
    places = jnp.stack(jnp.divmod(jnp.arange(count), grid[1]), axis=1)

    def of_block(block: tuple[Array, Array]) -> Array:
        features, here = map(constrain_batch, block)
        allowed = memory.used[None, :, None] & _near(here, places, rule.radius)[:, None]
        cosines = jnp.matmul(features, voters.T, precision="highest")
        cosines = jnp.where(allowed.reshape(cosines.shape), cosines, -jnp.inf)
        return jnp.matmul(_weights(cosines, rule), labels, precision="highest")

    padded = (jnp.pad(x, [(0, fill), (0, 0)]) for x in (targets, places))
    found = jax.lax.map(of_block, tuple(x.reshape(blocks, rows, -1) for x in padded))
    return found.reshape(blocks * rows, -1)[:count]


def _near(here: Array, places: Array, radius: int) -> Array:
    """Which patches may vote for which, bool [rows, N]."""
    apart = jnp.abs(here[:, None] - places).max(axis=-1)
    return apart <= radius if radius else jnp.ones(apart.shape, bool)


def _weights(cosines: Array, rule: Rule) -> Array:
    """Weights [rows, voters], of which each row's sum is 1; those beyond the top k are 0."""
    best = top_columns(cosines, min(rule.top_k, cosines.shape[1]))[0]
    # exp(cosine / temperature) over its largest value, which cancels and cannot overflow.
    weights = jnp.exp((cosines - best[:, :1]) / rule.temperature)
    weights = jnp.where(cosines >= best[:, -1:], weights, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnames=("grid", "patch_size"))
def at_pixels(labels: Array, grid: tuple[int, int], patch_size: int) -> Array:
    """Labels [N, K] of patches at every pixel of the frame, each channel spread to 0..1.

    Returns:
      fp32 [rows * patch, columns * patch, K]; the class of a pixel is its greatest channel.
    """
    maps = resize(labels.reshape(*grid, -1), (grid[0] * patch_size, grid[1] * patch_size))
    low, high = maps.min(axis=(0, 1)), maps.max(axis=(0, 1))
    # DINOv2: a channel that is the same everywhere stays as it is; DINO divides 0 by 0 there.
    spread = (high > 0) & (high > low)
    return jnp.where(spread, (maps - low) / jnp.where(spread, high - low, 1), maps)


def classes_of(
    labels: Array, grid: tuple[int, int], patch_size: int, size: tuple[int, int]
) -> np.ndarray:
    """The class of each pixel of the frame as it was stored, uint8 [H, W]; 0 is the background.

    Args:
      labels: [N, K] of `propagate`.
      size: H, W.
    """
    return _resized(np.asarray(_greatest(labels, grid, patch_size)), size)


@functools.partial(jax.jit, static_argnames=("grid", "patch_size"))
def _greatest(labels: Array, grid: tuple[int, int], patch_size: int) -> Array:
    return at_pixels(labels, grid, patch_size).argmax(axis=-1).astype(jnp.uint8)
