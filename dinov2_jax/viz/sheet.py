"""The crops of a few pictures on one sheet, so that a reader sees what the model is shown."""

import io
import math

import numpy as np
from PIL import Image

from dinov2_jax.viz.canvas import beside, framed, under
from dinov2_jax.viz.pca import enlarge

MIN_ROW_PX = 96
GAP_PX = 4
WIDE_GAP_PX = 12  # between the global and the local crops
GREY = (150, 150, 150)  # separates crops from white and from black pages


def crop_sheet(global_crops: np.ndarray, local_crops: np.ndarray) -> bytes:
    """Draws one row a picture, its two global crops and then its local crops, as a PNG file.

    Integers enlarge the crops: global ones to at least 96 px, local ones up to the row's height.

    Args:
      global_crops: uint8 [n, 2, S, S, 3].
      local_crops: uint8 [n, V, s, s, 3]; V may be 0.

    Raises:
      ValueError: no picture, or not the same number of pictures in both.
    """
    n = len(global_crops)
    if n == 0 or len(local_crops) != n:
        raise ValueError(
            f"a crop sheet needs the same pictures in both arrays, at least one: got {n} with "
            f"global and {len(local_crops)} with local crops; pass one batch's arrays."
        )
    rows = [_row(*crops) for crops in zip(global_crops, local_crops, strict=True)]
    return png_bytes(framed(under(rows, GAP_PX, GREY), GAP_PX, GREY))


def as_rgb(images: np.ndarray) -> np.ndarray:
    """[..., C] -> [..., 3] to look at: the first three channels, or the first one three times."""
    return images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)


def png_bytes(image: np.ndarray) -> bytes:
    """Encodes a uint8 [H, W, 3] picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _row(global_crops: np.ndarray, local_crops: np.ndarray) -> np.ndarray:
    large = enlarge(global_crops, math.ceil(MIN_ROW_PX / global_crops.shape[1]))
    parts, height = [beside(large, GAP_PX, GREY)], large.shape[1]
    if len(local_crops):
        small = enlarge(local_crops, max(1, height // local_crops.shape[1]))
        parts.append(beside(small[:, :height], GAP_PX, GREY))  # cuts crops above the row's height
    return beside(parts, WIDE_GAP_PX, GREY)
