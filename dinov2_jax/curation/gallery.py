"""Small pictures of the pool for the report."""

import html
from collections.abc import Sequence

import numpy as np

from dinov2_jax.curation.pool import Pool
from dinov2_jax.data.decode import BadImage, DecodeSpec, load_record
from dinov2_jax.errors import printable
from dinov2_jax.viz.canvas import beside, fit
from dinov2_jax.viz.page import picture
from dinov2_jax.viz.sheet import png_bytes

SIDE_PX = 96


class Gallery:
    """Draws rows of a pool as pictures of 96 px within the page."""

    def __init__(self, pool: Pool) -> None:
        self._source, self.shown = pool.source, 0
        max_pixels = pool.config.data.max_pixels
        self._decoding = DecodeSpec(max_pixels, min_side_px=SIDE_PX)

    def row(self, rows: Sequence[int], caption: str) -> str:
        """Pictures in a row, with a caption; their names appear under the pointer."""
        cells = [self._cell(row) for row in rows]
        self.shown += len(cells)
        names = ", ".join(printable(self._source.name(row)) for row in rows)
        image = picture(png_bytes(beside(cells, 2)), names)
        return (
            f'<figure title="{html.escape(names)}">{image}'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def grid(self, figures: Sequence[str]) -> str:
        """Figures beside and below each other; "" without any."""
        return f'<div class="pairs">{"".join(figures)}</div>' if figures else ""

    def _cell(self, row: int) -> np.ndarray:
        try:
            return fit(load_record(self._source, row, self._decoding), SIDE_PX)
        except BadImage:
            return np.full((SIDE_PX, SIDE_PX, 3), 200, np.uint8)
