"""The crops of a few pictures on one sheet: what the model is shown, to be looked at first."""

import io
import math

import numpy as np
from PIL import Image

from dinov2_jax.viz.pca import enlarge

MIN_ROW_PX = 96
GAP_PX = 4
WIDE_GAP_PX = 12  # between the global and the local crops
GAP_COLOUR = 150  # grey that separates crops from white and from black pages


def crop_sheet(global_crops: np.ndarray, local_crops: np.ndarray) -> bytes:
    """A PNG with one row a picture: its two global crops, then its local crops.

    Args:
        global_crops: uint8 [n, 2, S, S, 3].
        local_crops: uint8 [n, V, s, s, 3]; V may be 0.

    Returns:
        The file's bytes. Crops are enlarged by integers, global ones to at least 96 px, local
        ones as far as they still fit the row's height.

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
    return png_bytes(_stack(rows))


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Something to look at: [..., C] -> [..., 3]; the first three channels, or one for all."""
    return images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)


def png_bytes(image: np.ndarray) -> bytes:
    """Encodes a uint8 [H, W, 3] picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _row(global_crops: np.ndarray, local_crops: np.ndarray) -> np.ndarray:
    size_px = global_crops.shape[1]
    tall = enlarge(global_crops, math.ceil(MIN_ROW_PX / size_px))
    height_px = tall.shape[1]
    cells = [tall[0], _gap(height_px, GAP_PX), tall[1]]
    if len(local_crops):
        small = enlarge(local_crops, max(1, height_px // local_crops.shape[1]))
        for index, crop in enumerate(small):
            cells.append(_gap(height_px, GAP_PX if index else WIDE_GAP_PX))
            cells.append(_centre(crop, height_px))
    return np.concatenate(cells, axis=1)


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """Rows under each other, with a gap between them and around the sheet."""
    between = _gap(GAP_PX, rows[0].shape[1])
    parts = [part for row in rows for part in (row, between)][:-1]
    border = ((GAP_PX, GAP_PX), (GAP_PX, GAP_PX), (0, 0))
    return np.pad(np.concatenate(parts), border, constant_values=GAP_COLOUR)


def _centre(crop: np.ndarray, height_px: int) -> np.ndarray:
    """Pads a local crop to the row's height; one that is larger is cut."""
    spare = max(0, height_px - crop.shape[0])
    above = spare // 2
    margins = ((above, spare - above), (0, 0), (0, 0))
    return np.pad(crop[:height_px], margins, constant_values=GAP_COLOUR)


def _gap(height_px: int, width_px: int) -> np.ndarray:
    return np.full((height_px, width_px, 3), GAP_COLOUR, np.uint8)
