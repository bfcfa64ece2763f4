"""Figures as PNG files, and one page that holds them all."""

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.run.files import write_bytes, write_text
from dinov2_jax.viz.page import document, folded, note_list, picture, section, settings_table
from dinov2_jax.viz.sheet import png_bytes

PAGE_FILE = "pictures.html"


class Figure(NamedTuple):
    """A figure of the page.

    Attributes:
      heading: of its section; figures of one section follow each other.
      lead: what the section's figures show and how they were computed.
      file: name of the PNG.
      image: uint8 [H, W, 3].
      caption: what this figure alone shows.
    """

    heading: str
    lead: str
    file: str
    image: np.ndarray
    caption: str


def write_gallery(
    folder: Path,
    title: str,
    facts: Sequence[str],
    figures: Sequence[Figure],
    notes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a PNG for each figure and the page around them, each whole or not at all.

    Args:
      folder: made if missing; files of the same names are replaced.
      title: of the page.
      facts: lines under the title.
      figures: in the order of the page.
      notes: sentences for the reader; those that begin with "warning" stand out.
      settings: the configuration, nested; folded away at the end.

    Returns:
      the page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(html.escape(fact) for fact in facts)
    parts = [f'<h1>{html.escape(title)}</h1>\n<p class="quiet lines">{lines}</p>', note_list(notes)]
    for (heading, lead), group in itertools.groupby(figures, key=lambda f: (f.heading, f.lead)):
        shown = "\n".join(_write_figure(folder, figure) for figure in group)
        parts.append(section(heading, f'<div class="plates">{shown}</div>', lead))
    parts.append(folded("Configuration", settings_table(settings or {})))
    page = folder / PAGE_FILE
    write_text(page, document(title, parts))
    return page


def _write_figure(folder: Path, figure: Figure) -> str:
    """Writes the PNG; returns the HTML that holds it."""
    png = png_bytes(figure.image)
    write_bytes(folder / figure.file, png)
    return plate(png, figure.caption, figure.image.shape[1])


def plate(png: bytes, caption: str, width_px: int) -> str:
    """A picture within the page, no wider than it is, and its caption."""
    return (
        f'<figure class="plate" style="max-width: {width_px}px">{picture(png, caption)}'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
