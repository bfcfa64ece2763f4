"""Stage "report": report.html, with what was removed beside what was kept."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation.calibrate import NO_PAIRS
from dinov2_jax.curation.gallery import Gallery
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import Stage, read_stage
from dinov2_jax.curation.tables import read_arrays
from dinov2_jax.run.files import write_text
from dinov2_jax.viz.curves import curve
from dinov2_jax.viz.page import document, folded, section, settings_table

PAGE = "report.html"
PAIRS, COMPONENTS, QUERIES, CLUSTERS = 50, 12, 20, 20
_SHOWN_EDITS = ("jpeg_30", "crop_70", "flip", "collage_quarter")


def stage(used: tuple[str, ...]) -> Stage:
    """The stage for a run that uses these stages."""
    reads = tuple(name for name in used if name != "report")

    def run(pool: Pool, folder: Path) -> Mapping[str, int]:
        gallery = Gallery(pool)
        name = html.escape(pool.folder.resolve().name)
        parts = [
            f"<h1>{name}</h1>\n<p class='quiet'>dinov2_jax: curation of {pool.rows:,} pictures</p>",
            section("What happened to the pictures", _funnel(pool, reads)),
            *_pairs(pool, gallery),
            _components(pool, gallery),
            _excluded(pool, gallery, reads),
            _neighbours(pool, gallery, reads),
            _clusters(pool, gallery, reads),
            _calibration(pool),
            folded("Configuration", settings_table(pool.config.to_dict())),
        ]
        title = f"dinov2_jax curation: {pool.folder.resolve().name}"
        write_text(folder / PAGE, document(title, parts))
        return {"rows": pool.rows, "pictures_shown": gallery.shown}

    return Stage("report", reads, lambda pool: {}, run)


def _funnel(pool: Pool, reads: Sequence[str]) -> str:
    """A row a stage: what it counted."""
    rows = []
    for name in reads:
        record = read_stage(pool.folder / name)
        counts = {"rows": record["rows"], **record["counts"]}
        said = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items())
        rows.append(f"<tr><th>{name}</th><td>{said}</td><td>{record['seconds']:,.1f} s</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _pairs(pool: Pool, gallery: Gallery) -> list[str]:
    """Removed pictures beside the one that is kept, the least alike first."""
    folder = pool.folder / "dedup"
    edges, known = read_arrays(folder / "edges"), read_arrays(folder)
    kept_of = np.full(pool.rows, -1)
    kept = np.flatnonzero(known["kept"])
    kept_of[known["component"][kept]] = kept
    direct = kept_of[known["component"][edges["a"]]]
    touches = (edges["a"] == direct) | (edges["b"] == direct)
    found = []
    for kind, lead in (
        ("feature", "Pairs by descriptor, the least alike first: look here for mistakes."),
        ("hash", "Pairs by hash, the most different first."),
        ("blank", "Blank pictures of one grey."),
    ):
        chosen = np.flatnonzero((edges["kind"] == kind) & touches)
        chosen = chosen[np.argsort(edges["score"][chosen], kind="stable")][:PAIRS]
        figures = []
        for at in chosen:
            a, b = int(edges["a"][at]), int(edges["b"][at])
            stays, goes = (a, b) if known["kept"][a] else (b, a)
            caption = f"{edges['score'][at]:.3f}: kept, removed"
            figures.append(gallery.row((stays, goes), caption))
        found.append(section(f"Removed beside kept: {kind}", gallery.grid(figures), lead))
    return found


def _components(pool: Pool, gallery: Gallery) -> str:
    component = read_arrays(pool.folder / "dedup", ("component",))["component"]
    sizes = np.bincount(component)
    largest = np.argsort(-sizes, kind="stable")[:COMPONENTS]
    figures = []
    for label in largest[sizes[largest] > 2]:
        rows = np.flatnonzero(component == label)
        figures.append(gallery.row(rows[:4].tolist(), f"{len(rows):,} pictures"))
    lead = "The largest groups of copies; pictures here that differ are a chain of false links."
    return section("Largest components", gallery.grid(figures), lead)


def _excluded(pool: Pool, gallery: Gallery, reads: Sequence[str]) -> str:
    if "exclude" not in reads:
        return ""
    edges = read_arrays(pool.folder / "exclude" / "edges")
    order = np.argsort(edges["score"], kind="stable")[:PAIRS]
    figures = [
        gallery.row(
            (int(edges["row"][at]),),
            f"{edges['score'][at]:.3f} with record {edges['record'][at]} of "
            f"{edges['reference'][at]}",
        )
        for at in order
    ]
    lead = "Pictures of the pool that are copies of an evaluation picture, the least alike first."
    return section("Excluded by references", gallery.grid(figures), lead)


def _neighbours(pool: Pool, gallery: Gallery, reads: Sequence[str]) -> str:
    if "retrieve" not in reads:
        return ""
    found = read_arrays(pool.folder / "retrieve")
    figures = []
    asked = list(dict.fromkeys(zip(found["query_set"], found["query"], strict=True)))[:QUERIES]
    for name, query in asked:
        mine = np.flatnonzero((found["query_set"] == name) & (found["query"] == query))
        mine = mine[np.argsort(-found["cosine"][mine], kind="stable")][:4]
        caption = f"{name}, query {query}: cosine {found['cosine'][mine[0]]:.2f} and less"
        figures.append(gallery.row(found["row"][mine].tolist(), caption))
    return section("Retrieved for queries", gallery.grid(figures))


def _clusters(pool: Pool, gallery: Gallery, reads: Sequence[str]) -> str:
    if "cluster" not in reads:
        return ""
    found = read_arrays(pool.folder / "cluster")
    sizes = np.bincount(found["cluster"])
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    figures = []
    for cluster in order[np.unique(np.linspace(0, len(order) - 1, CLUSTERS).astype(int))]:
        mine = np.flatnonzero(found["cluster"] == cluster)
        mine = mine[np.argsort(found["distance"][mine], kind="stable")][:9]
        figures.append(gallery.row(found["row"][mine].tolist(), f"{sizes[cluster]:,} pictures"))
    lead = "From the largest cluster to the smallest, the pictures nearest to the centre."
    return section("Clusters", gallery.grid(figures), lead)


def _calibration(pool: Pool) -> str:
    path = pool.folder / "calibrate" / "curve.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    known = json.loads((path.parent / "thresholds.json").read_text(encoding="utf-8"))
    names = {"recall": "all made copies", "false_share": "false"}
    names |= {edit: edit.replace("_", " ") for edit in _SHOWN_EDITS}
    lines = {
        title: [(row["threshold"], 100 * row[name]) for row in rows]
        for name, title in names.items()
    }
    figure = curve("found, and falsely linked", lines, unit=" %", x_name="threshold")
    how = "calibrated" if known["calibrated"] else "too few pictures to calibrate"
    if known["pool"] >= NO_PAIRS:
        how = "descriptors do not tell these pictures apart and are not compared"
    lead = (
        f"Shares of copies that are found, and of pictures with a link to an unrelated one. The "
        f"threshold is {known['pool']:.3f} within the pool and {known['references']:.3f} against "
        f"references ({how})."
    )
    return section("Calibration", f'<div class="curves">{figure}</div>', lead)
