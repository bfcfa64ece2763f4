"""Objects that are followed through a video: their masks on some of the frames."""

from collections.abc import Sequence

import numpy as np

from dinov2_jax.viz.canvas import beside, titled, under, within
from dinov2_jax.viz.masks import nearest, overlay

CELL_PX = 232  # longer side of a frame
FRAMES = 4


def track_sheet(
    frames: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    colours: np.ndarray,
    truth: Sequence[np.ndarray] | None = None,
    count: int = FRAMES,
    cell_px: int = CELL_PX,
) -> np.ndarray:
    """Draws the objects on evenly spread frames, the first and the last among them.

    Args:
      frames: uint8 [H, W, 3] of a whole video, or of the part that is shown.
      masks, truth: of each frame, [H, W]; 0 is the background, which keeps the picture's colours,
        255 is no object either.
      colours: RGB of the objects from 1, uint8 [n, 3]; object i has colours[i - 1].
      count: how many frames are shown.
      cell_px: longer side of each frame.

    Returns:
      uint8 [h, w, 3]: a row of predicted masks and, with `truth`, a row of true ones below it.
    """
    chosen = sorted({round(i) for i in np.linspace(0, len(frames) - 1, count)})
    rows = [("predicted", masks)] + ([("truth", truth)] if truth is not None else [])
    drawn = []
    for kind, found in rows:
        cells = []
        for place in chosen:
            small = within(np.asarray(frames[place]), cell_px)
            objects = nearest(found[place], small.shape[:2]).astype(np.int64) - 1
            objects[objects < 0] = len(colours)  # the background is none of them
            cells.append(titled(overlay(small, objects, colours), f"{kind}, frame {place}"))
        drawn.append(beside(cells))
    return under(drawn)
