"""Pictures as PNG files and as one page that carries them all."""

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.run.files import write_bytes
from dinov2_jax.viz.page import document, folded, note_list, picture, section, settings_table
from dinov2_jax.viz.sheet import png_bytes

PAGE_FILE = "pictures.html"


class Figure(NamedTuple):
    """A picture to be shown.

    Attributes:
      heading: of its section; figures of one section follow each other.
      lead: what the section's pictures show and how they were computed.
      file: name of the PNG.
      image: uint8 [H, W, 3].
      caption: what is special about this one.
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
    """Writes a PNG a figure and the page around them, each whole or not at all.

    Args:
      folder: made if missing; files of the same names are replaced.
      title: of the page.
      facts: a line each under the title.
      figures: in the order of the page.
      notes: sentences for the reader; those that begin with "warning" stand out.
      settings: the configuration, nested; folded away at the end.

    Returns:
      the page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {figure.file: png_bytes(figure.image) for figure in figures}
    for name, content in files.items():
        write_bytes(folder / name, content)
    lines = "\n".join(html.escape(fact) for fact in facts)
    parts = [f'<h1>{html.escape(title)}</h1>\n<p class="quiet lines">{lines}</p>', note_list(notes)]
    for (heading, lead), group in itertools.groupby(figures, key=lambda f: (f.heading, f.lead)):
        shown = "\n".join(_figure(figure, files[figure.file]) for figure in group)
        parts.append(section(heading, f'<div class="plates">{shown}</div>', lead))
    parts.append(folded("Configuration", settings_table(settings or {})))
    page = folder / PAGE_FILE
    write_bytes(page, document(title, parts).encode())
    return page


def _figure(figure: Figure, png: bytes) -> str:
    caption = f"<figcaption>{html.escape(figure.caption)}</figcaption>"
    width = figure.image.shape[1]
    return (
        f'<figure class="plate" style="max-width: {width}px">'
        f"{picture(png, figure.caption)}{caption}</figure>"
    )
