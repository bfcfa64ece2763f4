"""results.html: the figures of an evaluation, the paper's beside them, and their curves."""

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinov2_jax.config.files import leaves
from dinov2_jax.viz.curves import curve
from dinov2_jax.viz.page import document, folded, section, table

_SPAN_POINTS = 2.0  # least height of an axis in percent


def write_page(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the page of what `Results.as_dict` gives, atomically."""
    weights, protocols = results["about"]["weights"], results["protocols"]
    page = document(
        f"Evaluation of {Path(weights['source']).name}",
        [
            f"<h1>Evaluation</h1><p class='quiet'>{html.escape(weights['source'])}</p>",
            section(
                "Figures", _figures(protocols), "The paper's figure where it is of this model."
            ),
            section("Curves", _curves(protocols)),
            folded("Protocols", table(_rows({k: v["protocol"] for k, v in protocols.items()}))),
            folded("Data", table(_rows({k: _data(v) for k, v in protocols.items()}))),
            folded("Weights", table(_rows(results["about"]))),
            folded("Versions", table(_rows(results["versions"]))),
        ],
    )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _figures(protocols: Mapping[str, Any]) -> str:
    rows = []
    for name, found in protocols.items():
        for figure, value in found["headline"].items():
            paper = found["paper"].get(figure)
            beside = "" if paper is None else f" (paper {paper:.1f})"
            rows.append((f"{name}: {figure}", f"{value:.2f} %{beside}"))
    return table(rows)


def _curves(protocols: Mapping[str, Any]) -> str:
    figures = [
        curve(
            title,
            [(x, y) for x, y in points],
            unit=" %",
            min_span=_SPAN_POINTS,
            mark_points=True,
            x_name=title.rpartition(" by ")[2],
        )
        for found in protocols.values()
        for title, points in found["curves"].items()
    ]
    return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in leaves(values).items()]


def _data(found: Mapping[str, Any]) -> dict[str, Any]:
    names = ("data", "classes", "splits")
    return {n: found["settings"][n] for n in names if n in found["settings"]} | found["other_data"]
