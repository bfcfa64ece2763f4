"""report.html: the curves and pictures of a run in one file, readable without network or server."""

import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.run.files import write_text
from dinov2_jax.run.metrics import read_metrics
from dinov2_jax.viz.curves import curve, number, series
from dinov2_jax.viz.page import (
    document,
    folded,
    note_list,
    numbers,
    picture,
    section,
    settings_table,
)
from dinov2_jax.viz.sheet import png_bytes

REPORT_FILE = "report.html"
LOSSES = {
    "loss": "Loss, total",
    "loss/dino_global": "DINO, global crops",
    "loss/dino_local": "DINO, local crops",
    "loss/ibot": "iBOT, masked patches",
    "loss/cls_features": "Features, cls of global crops",
    "loss/local_features": "Features, cls of local crops",
    "loss/patch_features": "Features, patches",
    "loss/koleo": "KoLeo, spread of features",
}
KNN_SPAN_POINTS = 5.0  # least height of the k-NN axis


def write_report(
    workdir: Path,
    *,
    config: Mapping[str, Any],
    crops_png: bytes | None,
    pca_pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    attribution: str | None,
    notes: Sequence[str],
) -> None:
    """Writes <workdir>/report.html from <workdir>/metrics.jsonl and the arguments, atomically.

    Args:
      workdir: the run directory; an empty or missing metrics.jsonl gives a page that says so.
      config: the resolved configuration, nested.
      crops_png: the file of `sheet.crop_sheet`, or None.
      pca_pairs: (picture, its `pca.pca_rgb`), both uint8 [H, W, 3].
      attribution: who made the pictures shown, if their licence asks for it.
      notes: sentences for the reader; those that begin with "warning" stand out.
    """
    rows, name = read_metrics(workdir), Path(workdir).resolve().name
    licence = f'<p class="quiet lines">{html.escape(attribution)}</p>' if attribution else ""
    parts = [
        _heading(name, config),
        numbers(headline(rows, config)),
        note_list(notes),
        _curves(rows),
        _crops(crops_png),
        _pca(pca_pairs),
        _health(rows),
        folded("Configuration", settings_table(config)),
        section("Pictures", licence),
    ]
    write_text(Path(workdir) / REPORT_FILE, document(f"dinov2_jax run: {name}", parts))


def headline(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few numbers to read first: (name, value), only those the run has."""
    if not rows:
        return []
    steps = max(row["step"] for row in rows)
    knn, entries = _finite(rows, "knn_top1"), []
    if knn:
        entries.append(("k-NN top-1, last", f"{knn[-1]:.1f} %"))
    if len(knn) > 1:
        gain = f"{knn[-1] - knn[0]:+.1f}".replace("-", "\N{MINUS SIGN}")
        first = ("k-NN top-1, first", f"{knn[0]:.1f} %")
        entries = [first, *entries, ("Gain, points", gain)]
    entries.append(("Steps", f"{steps:,}"))
    if config.get("batch_size"):
        entries.append(("Images seen", f"{steps * config['batch_size']:,}"))
    if rates := _finite(rows, "images_per_s"):
        # The median: the first reading includes the compilation.
        entries.append(("Images a second", number(statistics.median(rates))))
    if skipped := _finite(rows, "skipped_pictures"):
        entries.append(("Pictures skipped", f"{skipped[-1]:,.0f}"))
    return entries


def _finite(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The finite values of a metric."""
    return [row[name] for row in rows if row.get(name) is not None]


def _heading(name: str, config: Mapping[str, Any]) -> str:
    model, data = config.get("model", {}), config.get("data", {})
    facts = [model.get("variant"), data.get("source"), data.get("path")]
    line = " \N{MIDDLE DOT} ".join(str(fact) for fact in facts if fact) or "training run"
    return f'<h1>{html.escape(name)}</h1>\n<p class="quiet">dinov2_jax: {html.escape(line)}</p>'


def _curves(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return section("Curves", "<p>No metrics were written yet.</p>")
    knn, figures = series(rows, "knn_top1"), []
    percent = {"unit": " %", "min_span": KNN_SPAN_POINTS, "mark_points": True, "start_line": True}
    for title, points in (("k-NN", knn), ("Linear probe", series(rows, "linear_top1"))):
        if points:
            figures.append(curve(f"{title} top-1, teacher", points, **percent))
    for name, title in LOSSES.items():
        points = series(rows, name)
        if any(value for _, value in points):  # a part that is 0 throughout is switched off
            figures.append(curve(title, points))
    lead = "Each with its own scale; the parts of the loss before their weights."
    if not knn:
        lead += " No k-NN: the run had no labelled pictures to measure it on, or none was due."
    return section("Curves", f'<div class="curves">{"".join(figures)}</div>', lead)


def _health(rows: Sequence[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("health/"))
    drawn = []
    for name in names:
        if points := series(rows, name):
            title = name.removeprefix("health/").replace("_", " ").capitalize()
            drawn.append(curve(title, points))
    return folded("Health", f'<div class="curves">{"".join(drawn)}</div>' if drawn else "")


def _crops(png: bytes | None) -> str:
    if png is None:
        return ""
    lead = (
        "What the model is shown. Each row is one picture: its two global crops, then its local "
        "crops, with changed colours. Check that they still show something worth recognising."
    )
    return section("Crops", f'<div class="sheet">{picture(png, "crops of a batch")}</div>', lead)


def _pca(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    figures = [
        f'<figure><div class="pair">{picture(png_bytes(image), f"picture {i}")}'
        f"{picture(png_bytes(colours), f'its patch features, picture {i}')}</div></figure>"
        for i, (image, colours) in enumerate(pairs, 1)
    ]
    lead = (
        "The three leading principal components of the teacher's patch features as red, green and "
        "blue, computed over all pictures together. Similar colours mean similar features."
    )
    body = f'<div class="pairs">{"".join(figures)}</div>' if figures else ""
    return section("Patch features", body, lead)
