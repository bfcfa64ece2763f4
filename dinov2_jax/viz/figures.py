"""The figures of the gallery: from what a backbone sees to a sheet and the words under it."""

import itertools
from collections.abc import Sequence

import numpy as np

from dinov2_jax.features.search import unit
from dinov2_jax.viz.canvas import beside, centre, framed, resize, titled, under, within
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.viz.heat import head_sheet
from dinov2_jax.viz.look import Album, Picture, Seen
from dinov2_jax.viz.matching import draw_matches, mutual_matches
from dinov2_jax.viz.neighbours import nearest, neighbour_sheet, plane, scatter_sheet
from dinov2_jax.viz.pca import PcaPictures

CELL_PX = 312  # of the PCA sheet, three of which fill a page
MATCH_PX = 460  # longest side of a picture with lines

PCA_LEAD = (
    "The principal components of the patch features, one joint PCA over all pictures: the first "
    "three as red, green and blue, each from its 1st to its 99th percentile. Equal colours are "
    "similar features, within a picture and across pictures; which colour it is means nothing. "
    "Middle: all patches. Right: the foreground, patches whose first component lies more than "
    "{threshold:g} standard deviations {side}, coloured by a second joint PCA of these patches "
    "alone; the background is black."
)
SIDES = {
    "auto": "above its mean, with the sign that makes the pictures' edges mostly background",
    "high": "above its mean",
    "low": "below its mean",
}
MATCH_LEAD = (
    "Patches of two pictures that are each other's nearest by cosine similarity, {where}. At most "
    "{lines} lines a pair, the most similar first, their ends at least {spacing} patches apart. A "
    "line's colour follows its place in the left picture."
)
HEAT_LEAD = (
    "Attention of the block from the cls token to the patches (softmax in fp32), its mean over the "
    "heads and each head: dark is little, yellow is much, every map with its own scale (up to its "
    "99.5th percentile) and interpolated between patches. The percentage is the share of a head's "
    "attention that goes to patches; the rest goes to cls itself and to registers."
)
SHEET_LEAD = (
    "At the left a picture, at the right those of the folder whose cls features are most like its "
    "own, with the cosine similarity. The picture itself is left out. Neighbours are shown as the "
    "squares of {side_px} px that the model was given."
)
PLANE_LEAD = (
    "The pictures of the folder at the first two principal components of their cls features "
    "(brought to length 1). Each axis runs from the 1st to the 99th percentile; what lies beyond "
    "is drawn at its end. Each is shown as the square of {side_px} px that the model was given. A "
    "linear projection: near in the plane may still be far in the features."
)


def pca_figure(
    pictures: Sequence[Picture], pca: PcaPictures, threshold: float, side: str
) -> Figure:
    """Each picture beside its patches' colours, with and without background."""
    rows = []
    for picture, *maps in zip(pictures, pca.colours, pca.foreground_colours, strict=True):
        small = within(picture.pixels, CELL_PX)
        shown = [small, *(resize(m, *small.shape[:2], smooth=False) for m in maps)]
        wide = [centre(cell, (0, CELL_PX)) for cell in shown]
        names = (picture.name, "all patches", "foreground")
        rows.append(beside([titled(c, name) for c, name in zip(wide, names, strict=True)]))
    share = 100 * np.mean(np.concatenate([mask.ravel() for mask in pca.foreground]))
    caption = f"{len(pictures)} pictures; {share:.0f} % of their patches are taken as foreground."
    lead = PCA_LEAD.format(side=SIDES[side], threshold=threshold)
    return Figure("Patch features as colours", lead, "pca.png", framed(under(rows)), caption)


def match_figures(
    pictures: Sequence[Picture],
    seen: Sequence[Seen],
    masks: Sequence[np.ndarray] | None,
    *,
    pairs: int,
    lines: int,
    spacing: int,
) -> list[Figure]:
    """Matches of the pairs of pictures that are most alike.

    Args:
      masks: foreground of each picture, to match only that; or None.
    """
    where = "among all patches" if masks is None else "among the foreground patches of the PCA"
    lead = MATCH_LEAD.format(where=where, lines=lines, spacing=spacing)
    figures = []
    for number, (a, b) in enumerate(alike([s.cls for s in seen], pairs), 1):
        inside = None if masks is None else (masks[a], masks[b])
        maps = seen[a].patches, seen[b].patches
        found = mutual_matches(*maps, inside, lines, spacing)
        sides = [within(pictures[i].pixels, MATCH_PX) for i in (a, b)]
        sheet = draw_matches(*sides, found, (maps[0].shape[:2], maps[1].shape[:2]))
        caption = f"{pictures[a].name} and {pictures[b].name}: "
        if len(found.first):
            high, low = found.similarity[[0, -1]]
            caption += f"{len(found.first)} pairs of patches, similarity {high:.2f} to {low:.2f}."
        else:
            caption += "no pairs of patches; one of them has no foreground."
        file = f"matches_{number}.png"
        figures.append(Figure("Matching patches", lead, file, framed(sheet), caption))
    return figures


def attention_figures(
    pictures: Sequence[Picture], seen: Sequence[Seen], block: int
) -> list[Figure]:
    """A sheet a picture: mean and heads."""
    return [
        Figure(
            f"Attention of block {block}",
            HEAT_LEAD,
            f"attention_{number}.png",
            framed(head_sheet(picture.pixels, view.attention)),
            f"{picture.name}: {len(view.attention)} heads.",
        )
        for number, (picture, view) in enumerate(zip(pictures, seen, strict=True), 1)
    ]


def neighbour_figure(pictures: Sequence[Picture], album: Album, k: int) -> Figure:
    """The pictures, all of them in the album too, and their nearest there."""
    rows = {int(record): row for row, record in enumerate(album.records)}
    own = [rows[picture.record] for picture in pictures]
    found = nearest(album.features[own], album.features, k, own)
    names = [picture.name for picture in pictures]
    thumbs = [picture.pixels for picture in pictures]
    sheet = neighbour_sheet(thumbs, names, album.thumbs, found)
    caption = f"The nearest of {len(album.records):,} pictures."
    return Figure(
        "Nearest neighbours",
        SHEET_LEAD.format(side_px=album.side_px),
        "neighbours.png",
        sheet,
        caption,
    )


def plane_figure(album: Album) -> Figure:
    """All pictures of the folder on the plane of their two leading components."""
    found = plane(album.features)
    both = 100 * found.explained.sum()
    caption = f"{len(album.records):,} pictures; the plane holds {both:.0f} % of the variance."
    sheet = scatter_sheet(album.thumbs, found)
    return Figure(
        "The folder on a plane",
        PLANE_LEAD.format(side_px=album.side_px),
        "plane.png",
        sheet,
        caption,
    )


def alike(features: Sequence[np.ndarray], pairs: int) -> list[tuple[int, int]]:
    """So many pairs of different pictures, the most similar first by cosine; each picture once.

    A second round begins where all have had their turn, so that one picture does not fill the page.
    """
    values = unit(np.stack(features), np.float64)
    cosine = values @ values.T
    ranked = sorted(itertools.combinations(range(len(values)), 2), key=lambda pair: -cosine[pair])
    chosen: list[tuple[int, int]] = []
    while ranked and len(chosen) < pairs:
        taken: set[int] = set()
        for pair in list(ranked):
            if len(chosen) < pairs and not taken & set(pair):
                chosen.append(pair)
                ranked.remove(pair)
                taken |= set(pair)
    return chosen
