"""Block masks over the patches of the global crops, in a static number of slots.

Source: the masking generator and the collate function of DINOv2; a group replaces the batch of one
GPU in the reference.
"""

import math

import numpy as np

_MIN_BLOCK_PATCHES = 4
_LOG_ASPECT = math.log(1 / 0.3)  # block aspect ratios lie in 0.3 .. 1/0.3
_ATTEMPTS = 10


def sample_mask(rng: np.random.Generator, grid: tuple[int, int], target: int) -> np.ndarray:
    """One mask, bool [h, w], of at most `target` patches, grown block by block.

    Blocks are drawn until the target is reached or ten attempts in a row do not fit; nine of ten
    masks meet the target exactly.
    """
    height, width = grid
    mask = np.zeros(grid, bool)
    largest = (height // 2) * width  # the reference's (((0.5 * img) // p) * img) // p
    count = 0
    while count < target:
        added = _add_block(rng, mask, min(target - count, largest))
        if not added:
            break
        count += added
    return mask


def _add_block(rng: np.random.Generator, mask: np.ndarray, room: int) -> int:
    """Sets one block that adds 1 .. `room` patches to `mask`; returns how many, 0 if none fits."""
    height, width = mask.shape
    for u_area, u_aspect, u_top, u_left in rng.random((_ATTEMPTS, 4)).tolist():
        # With room < 4 the interval is simply reversed, as in the reference.
        area = _MIN_BLOCK_PATCHES + u_area * (room - _MIN_BLOCK_PATCHES)
        aspect = math.exp((2 * u_aspect - 1) * _LOG_ASPECT)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows >= height or columns >= width:
            continue
        top, left = int(u_top * (height - rows + 1)), int(u_left * (width - columns + 1))
        block = mask[top : top + rows, left : left + columns]
        added = rows * columns - int(np.count_nonzero(block))
        if 0 < added <= room:
            block[:] = True
            return added
    return 0


def upperbound(
    group_size: int, patches: int, probability: float, ratio: tuple[float, float]
) -> int:
    """The number of mask slots M of a group: no draw masks more patches."""
    edges = np.linspace(*ratio, int(2 * group_size * probability) + 1, dtype=np.float32)
    return sum(int(np.float32(patches) * edge) for edge in edges[1:])


def slots_of(upper: int) -> int:
    """The slots of a group whose draws mask at most `upper` patches; the rest is padding.

    A multiple of 8, because a GPU copies operands with another number of rows. At least 8, because
    an array without elements cannot be shared between processes.
    """
    return max(8, -(-upper // 8) * 8)


def sample_masks(
    rng: np.random.Generator,
    group_size: int,
    grid: tuple[int, int],
    probability: float,
    ratio: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks for the 2 * group_size global crops of one group.

    A share `probability` of the crops is masked, with mask ratios spread evenly over `ratio`. The
    masks are shuffled over all crops, so both, one or none of the crops of an image are masked.

    Returns:
      masks bool [group_size, 2, P]; indices int32 [M], flat into masks in (image, view, patch)
      order, padding 0; weights float32 [M], 1 / masked patches of the crop, padding 0.
    """
    crops, patches = 2 * group_size, grid[0] * grid[1]
    masked = int(crops * probability)
    edges = np.linspace(*ratio, masked + 1, dtype=np.float32).tolist()
    masks = np.zeros((crops, patches), bool)
    for slot, low, high in zip(rng.permutation(crops)[:masked], edges, edges[1:], strict=False):
        target = int(patches * rng.uniform(low, high))
        masks[slot] = sample_mask(rng, grid, target).reshape(-1)
    slots = slots_of(upperbound(group_size, patches, probability, ratio))
    flat = np.flatnonzero(masks)
    indices = np.zeros(slots, np.int32)
    indices[: len(flat)] = flat
    weights = np.zeros(slots, np.float32)
    weights[: len(flat)] = 1.0 / masks.sum(1)[flat // patches]
    return masks.reshape(group_size, 2, patches), indices, weights
