"""Figures of what segmentation and depth heads predict for pictures without a truth."""

from collections.abc import Sequence

import numpy as np

from dinov2_jax.datasets.masks import distinct_colours
from dinov2_jax.heads.dense_head import DenseHead
from dinov2_jax.viz.canvas import framed
from dinov2_jax.viz.depth import depth_sheet
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.viz.look import Picture
from dinov2_jax.viz.masks import mask_sheet

_CELL_PX = 460  # two of them fill a page
MASK_LEAD = (
    "The likeliest class of every pixel, laid over the picture, by the head {name}. Its scores of "
    "patches are resized to the picture, so that borders are smooth and thin things are lost. The "
    "legend names the classes that occur, the largest first."
)
DEPTH_LEAD = (
    "The distance of every pixel from the camera's plane, by the head {name}, which knows depths "
    "of {low:g} to {high:g} m. Near is bright and far is dark, in even steps of the logarithm, "
    "from the 1st to the 99th percentile of each picture. Metres are as good as the camera is like "
    "those that the head learned from; the order of things is usually right."
)


def mask_figures(
    pictures: Sequence[Picture], masks: Sequence[np.ndarray], head: DenseHead
) -> list[Figure]:
    """Draws the classes of each picture.

    Args:
      masks: classes [H, W] of each picture, of its own size.
    """
    heading, lead = "Segmentation", MASK_LEAD.format(name=head.name or head.kind)
    colours = head.colours if len(head.colours) else distinct_colours(head.classes)
    figures = []
    for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True), 1):
        sheet = mask_sheet(picture.pixels, mask, head.class_names, colours, cell_px=_CELL_PX)
        count = len(np.unique(mask))
        caption = f"{picture.name}: {count} of {head.classes} classes."
        file = f"segmentation_{number}.png"
        figures.append(Figure(heading, lead, file, framed(sheet), caption))
    return figures


def depth_figures(
    pictures: Sequence[Picture], depths: Sequence[np.ndarray], head: DenseHead
) -> list[Figure]:
    """Draws the depth of each picture.

    Args:
      depths: metres [H, W] of each picture, of its own size.
    """
    lead = DEPTH_LEAD.format(name=head.name or head.kind, low=head.low, high=head.high)
    figures = []
    for number, (picture, depth) in enumerate(zip(pictures, depths, strict=True), 1):
        sheet = framed(depth_sheet(picture.pixels, depth, cell_px=_CELL_PX))
        caption = f"{picture.name}: {depth.min():.3g} to {depth.max():.3g} m."
        figures.append(Figure("Depth", lead, f"depth_{number}.png", sheet, caption))
    return figures
