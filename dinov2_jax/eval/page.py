"""results.html: all metrics of a folder of results, the paper's beside them, curves, pictures."""

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinov2_jax.eval.results import HEAD, rows_of
from dinov2_jax.run.files import write_text
from dinov2_jax.viz.curves import curve
from dinov2_jax.viz.gallery import plate
from dinov2_jax.viz.page import document, folded, section, settings_table

_SPAN_POINTS = 2.0  # least height of an axis in percent


def write_page(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the page of what `Results.as_dict` gives, whole or not at all."""
    weights, found = results["about"]["weights"], results["results"]
    named = {
        f"{protocol}, {data}": entry
        for protocol, sets in found.items()
        for data, entry in sets.items()
    }
    notes = {name: entry["notes"] for name, entry in named.items()}
    settings = {name: entry["settings"] for name, entry in named.items()}
    lead = "The paper's figure stands beside ours where model, data, sizes and settings are equal."
    page = document(
        f"Evaluation of {Path(weights['source']).name}",
        [
            f"<h1>Evaluation</h1><p class='quiet'>{html.escape(weights['source'])}</p>",
            _warnings(named),
            section("Metrics", _metrics(rows_of(found)), lead),
            section("Curves", _curves(named)),
            *_pictures(path.parent, named),
            folded("How they came about", settings_table(notes)),
            folded("Settings and data", settings_table(settings)),
            folded("Weights", settings_table(results["about"])),
            folded("Versions", settings_table(results["versions"])),
        ],
    )
    write_text(path, page)


def _metrics(rows: Sequence[Sequence[str]]) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in row)}</tr>"

    body = "".join(cells(row, "td") for row in rows)
    return f'<div class="sheet"><table>{cells(HEAD, "th")}{body}</table></div>' if rows else ""


def _curves(named: Mapping[str, Any]) -> str:
    figures = [
        curve(
            drawn["title"],
            {name: [(x, y) for x, y in points] for name, points in drawn["lines"].items()},
            x_name=drawn["x_name"],
            unit=f" {drawn['unit']}".rstrip(),
            min_span=_SPAN_POINTS,
            mark_points=True,
            log_x=drawn["log_x"],
            chosen=tuple(drawn["chosen"]) if drawn["chosen"] else None,
        )
        for entry in named.values()
        for drawn in entry["curves"]
    ]
    return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def _pictures(folder: Path, named: Mapping[str, Any]) -> list[str]:
    """A section for each heading of a result; a PNG that somebody removed is left out."""
    found = []
    for name, entry in named.items():
        shown = (p for p in entry.get("pictures", ()) if (folder / p["file"]).is_file())
        for heading, group in itertools.groupby(shown, key=lambda p: (p["heading"], p["lead"])):
            plates = [
                plate((folder / p["file"]).read_bytes(), p["caption"], p["width_px"]) for p in group
            ]
            body = f'<div class="plates">{"".join(plates)}</div>'
            found.append(section(f"{heading[0]} ({name})", body, heading[1]))
    return found


def _warnings(named: Mapping[str, Any]) -> str:
    texts = {entry["notes"].get("warning", "") for entry in named.values()} - {""}
    return "".join(f'<p class="warning">{html.escape(text)}</p>' for text in sorted(texts))
