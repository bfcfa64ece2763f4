"""All tokens of a group in one array, so that every linear layer and norm runs once."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.ops.layout import filled_rows, row_major
from dinov2_jax.ops.stochastic_depth import kept_crops, rows_of_crops, sample_kept, split_keys

# A crop set of each group: its crops, and the tokens of a crop.
CropSet = tuple[int, int]


def pack(crops: Sequence[Array]) -> Array:
    """Concatenates crop sets [G, b, N, D] along tokens: [G, T, D].

    At the end zeros may fill up to a number of rows that is quick to multiply.
    """
    parts = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in crops]
    rows = sum(x.shape[1] for x in parts)
    extra = filled_rows(rows) - rows
    if extra:
        parts.append(jnp.zeros((parts[0].shape[0], extra, parts[0].shape[-1]), parts[0].dtype))
    return row_major(jnp.concatenate(parts, axis=1)) if len(parts) > 1 else parts[0]


def unpack(packed: Array, sets: Sequence[CropSet]) -> list[Array]:
    """Splits [G, T, ...] into crop sets [G, b, N, ...]; the inverse of `pack`."""
    out, start = [], 0
    for crops, tokens in sets:
        part = packed[:, start : start + crops * tokens]
        out.append(part.reshape(packed.shape[0], crops, tokens, *packed.shape[2:]))
        start += crops * tokens
    return out


def kept_sets(sets: Sequence[CropSet], rate: float) -> list[CropSet]:
    """The crop sets that a branch computes with stochastic depth of `rate`."""
    return [(kept_crops(crops, rate), tokens) for crops, tokens in sets]


def kept_rows(keys: Array, sets: Sequence[CropSet], rate: float, total: int) -> Array:
    """Rows of a packed array whose crops keep a branch: keys [G] -> [G, t].

    Args:
      total: rows of the packed array; rows from there on fill up.
    """
    rows, start = [], 0
    for set_keys, (crops, tokens) in zip(split_keys(keys, len(sets)), sets, strict=True):
        index = sample_kept(set_keys, crops, kept_crops(crops, rate))
        rows.append(rows_of_crops(index, tokens, start))
        start += crops * tokens
    count = sum(x.shape[-1] for x in rows)
    beyond = total + np.arange(filled_rows(count) - count, dtype=np.int32)
    rows.append(jnp.broadcast_to(beyond, (len(keys), len(beyond))))
    return jnp.concatenate(rows, axis=-1)


def row_scales(sets: Sequence[CropSet], rate: float, rows: int) -> np.ndarray:
    """b / k for the rows of k kept of b crops, so that a branch's mean is unchanged; [rows]."""
    scales = np.zeros(rows, np.float32)
    start = 0
    for (crops, tokens), (kept, _) in zip(sets, kept_sets(sets, rate), strict=True):
        scales[start : start + kept * tokens] = crops / kept
        start += kept * tokens
    return scales
