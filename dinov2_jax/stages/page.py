"""stages.html and stages.json: the runs of a recipe side by side."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinov2_jax.run.files import write_json, write_text
from dinov2_jax.run.metrics import read_metrics
from dinov2_jax.stages.plan import crops, model_name, parameters
from dinov2_jax.stages.progress import newest_step, read_record
from dinov2_jax.stages.recipe import Stage
from dinov2_jax.viz.curves import curve, series
from dinov2_jax.viz.page import document, folded, section, settings_table
from dinov2_jax.viz.report import KNN_SPAN_POINTS, REPORT_FILE

PAGE = "stages.html"
_LEAD = (
    "Each row is a run: its weights are in its folder, and its report opens by its name. "
    "Time is that of training, without evaluations."
)


def write_page(stages: Sequence[Stage], workdir: Path) -> None:
    """Writes both files from what the runs' folders hold; runs without a checkpoint are left out.

    Call it in one process.
    """
    found = [facts(stage, run, workdir) for stage in stages for run in stage.runs]
    runs = [one for one in found if one]
    write_json(workdir / "stages.json", {"runs": runs})
    name = html.escape(workdir.resolve().name)
    lines = {one["run"]: read_metrics(workdir / one["run"]) for one in runs}
    parts = [
        f"<h1>{name}</h1>\n<p class='quiet'>dinov2_jax: {len(stages)} stages</p>",
        section("Runs", _table(runs), _LEAD),
        section("Curves", _curves(lines), "Measured while training, on the teacher's features."),
        *(_settings(stage) for stage in stages),
    ]
    write_text(workdir / PAGE, document(f"dinov2_jax stages: {workdir.resolve().name}", parts))


def facts(stage: Stage, run: str, workdir: Path) -> dict[str, Any]:
    """What the table shows of a run, as plain values; {} before its first checkpoint."""
    folder, step = workdir / run, newest_step(workdir / run)
    if step < 0:
        return {}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    record = read_record(stage)
    files = record.get("evaluations", {}).get(run, {}).get("results", ())
    return {
        "run": run,
        "start": stage.start,
        "teacher": stage.teacher,
        "model": model_name(config["model"]),
        "parameters": parameters(config),
        "crops": crops(config["crops"]),
        "steps": step,
        "images": step * config["batch_size"],
        "train_s": record.get("train_s"),
        "results": {file: _metrics(folder / file) for file in files},
    }


def _metrics(file: Path) -> dict[str, float]:
    """Values by protocol, data and metric, such as "knn, openmoji: top-1, k=20"."""
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    return {
        f"{protocol}, {data}: {name}": metric["value"]
        for protocol, sets in found.items()
        for data, entry in sets.items()
        for name, metric in entry["metrics"].items()
    }


# ------------------------------------------------------------------------------------- HTML
def _table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One row a run; figures in which they differ most, top-1, are columns."""
    if not runs:
        return ""
    figures = _top1(runs)
    head = ("run", "start", "teacher", "model", "parameters", "crops", "steps", "images", "time")
    rows = [_row(one, figures) for one in runs]
    names = "".join(f"<th>{html.escape(name)}</th>" for name in (*head, *figures, "evaluation"))
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="sheet"><table><tr>{names}</tr>{body}</table></div>'


def _top1(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the metrics to show: all top-1, or the first of each file if it has none."""
    named = [list(found) for one in runs for found in one["results"].values()]
    shown = [[n for n in names if ": top-1" in n] or names[:1] for names in named]
    return list(dict.fromkeys(name for names in shown for name in names))


def _row(one: Mapping[str, Any], figures: Sequence[str]) -> list[str]:
    measured = {name: x for found in one["results"].values() for name, x in found.items()}
    results = [
        _link(f"{one['run']}/{Path(f).with_suffix('.html')}", "table") for f in one["results"]
    ]
    return [
        _link(f"{one['run']}/{REPORT_FILE}", one["run"]),
        html.escape(one["start"] or "random"),
        html.escape(one["teacher"] or "none"),
        html.escape(one["model"]),
        f"{one['parameters']:,}",
        one["crops"],
        f"{one['steps']:,}",
        f"{one['images']:,}",
        _clock(one["train_s"]),
        *(_figure(measured.get(name)) for name in figures),
        " ".join(results) or "none",
    ]


def _link(path: str, text: str) -> str:
    return f'<a href="{html.escape(path)}">{html.escape(text)}</a>'


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _clock(seconds: float | None) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    if seconds is None:
        return "not known"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _curves(lines: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    figures = []
    for title, name in (("k-NN top-1", "knn_top1"), ("Linear probe top-1", "linear_top1")):
        drawn = {run: points for run, rows in lines.items() if (points := series(rows, name))}
        if drawn:
            style = {"unit": " %", "min_span": KNN_SPAN_POINTS, "mark_points": True}
            figures.append(curve(title, drawn, **style))
    return f'<div class="curves">{"".join(figures)}</div>' if figures else ""


def _settings(stage: Stage) -> str:
    return folded(f"Configuration of {stage.name}", settings_table(stage.config.to_dict()))
