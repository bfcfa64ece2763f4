"""The figures of the page: each draws features or attention, and says how to read the drawing."""

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
    "similar features, within a picture and across pictures; a colour alone means nothing. "
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
    "Attention of the block from the cls token to the patches (softmax in fp32): the mean over the "
    "heads, then each head. Dark is little, yellow is much; every map has its own scale (up to its "
    "99.5th percentile) and is interpolated between patches. The percentage is the share of a "
    "head's attention that goes to patches; the rest goes to cls itself and to registers."
)
SHEET_LEAD = (
    "At the left a picture, at the right the pictures of the folder with the most similar cls "
    "features, each under its cosine similarity. The picture itself is left out. Neighbours are "
    "shown as the squares of {side_px} px that the model was given."
)
PLANE_LEAD = (
    "The pictures of the folder at the first two principal components of their cls features "
    "(normalised to length 1). Each axis runs from the 1st to the 99th percentile; pictures beyond "
    "lie at its end. Each is shown as the square of {side_px} px that the model was given. This is "
    "a linear projection: pictures near in the plane may be far apart in the features."
)


def pca_figure(
    pictures: Sequence[Picture], pca: PcaPictures, threshold: float, side: str
) -> Figure:
    """Draws each picture beside the colours of its patches, with and without background."""
    rows = []
    for picture, *maps in zip(pictures, pca.colours, pca.foreground_colours, strict=True):
        small = within(picture.pixels, CELL_PX)
        shown = [small, *(resize(m, *small.shape[:2], smooth=False) for m in maps)]
        names = zip(shown, (picture.name, "all patches", "foreground"), strict=True)
        rows.append(beside([titled(centre(cell, (0, CELL_PX)), name) for cell, name in names]))
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
    """Draws the matches of the most similar pairs of pictures, between the patches of `masks`."""
    where = "among all patches" if masks is None else "among the foreground patches of the PCA"
    lead = MATCH_LEAD.format(where=where, lines=lines, spacing=spacing)
    figures = []
    for number, (a, b) in enumerate(alike([s.cls for s in seen], pairs), 1):
        inside = None if masks is None else (masks[a], masks[b])
        maps = seen[a].patches, seen[b].patches
        matches = mutual_matches(*maps, inside, lines, spacing)
        sides = [within(pictures[i].pixels, MATCH_PX) for i in (a, b)]
        sheet = framed(draw_matches(*sides, matches, (maps[0].shape[:2], maps[1].shape[:2])))
        result = "no pairs of patches; one of them has no foreground."
        if count := len(matches.first):
            high, low = matches.similarity[[0, -1]]
            result = f"{count} pairs of patches, similarity {high:.2f} to {low:.2f}."
        caption = f"{pictures[a].name} and {pictures[b].name}: {result}"
        figures.append(Figure("Matching patches", lead, f"matches_{number}.png", sheet, caption))
    return figures


def attention_figures(
    pictures: Sequence[Picture], seen: Sequence[Seen], block: int
) -> list[Figure]:
    """Draws the attention of each picture, mean and heads."""
    heading, figures = f"Attention of block {block}", []
    for number, (picture, view) in enumerate(zip(pictures, seen, strict=True), 1):
        sheet = framed(head_sheet(picture.pixels, view.attention))
        caption = f"{picture.name}: {len(view.attention)} heads."
        figures.append(Figure(heading, HEAT_LEAD, f"attention_{number}.png", sheet, caption))
    return figures


def neighbour_figure(pictures: Sequence[Picture], album: Album, k: int) -> Figure:
    """Draws the pictures, which the album must hold too, and their nearest neighbours there."""
    rows = {int(record): row for row, record in enumerate(album.records)}
    own = [rows[picture.record] for picture in pictures]
    neighbours = nearest(album.features[own], album.features, k, own)
    names, pixels = [p.name for p in pictures], [p.pixels for p in pictures]
    sheet = neighbour_sheet(pixels, names, album.thumbs, neighbours)
    lead = SHEET_LEAD.format(side_px=album.side_px)
    caption = f"The nearest of {len(album.records):,} pictures."
    return Figure("Nearest neighbours", lead, "neighbours.png", sheet, caption)


def plane_figure(album: Album) -> Figure:
    """Draws all pictures of the folder on the plane of their two leading components."""
    placed = plane(album.features)
    both = 100 * placed.explained.sum()
    lead = PLANE_LEAD.format(side_px=album.side_px)
    caption = f"{len(album.records):,} pictures; the plane holds {both:.0f} % of the variance."
    sheet = scatter_sheet(album.thumbs, placed)
    return Figure("The folder on a plane", lead, "plane.png", sheet, caption)


def alike(features: Sequence[np.ndarray], pairs: int) -> list[tuple[int, int]]:
    """Chooses `pairs` pairs of pictures, the most similar first by cosine.

    A picture appears again only after all others had their turn, so that none fills the page.
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
