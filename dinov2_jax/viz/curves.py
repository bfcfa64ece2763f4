"""Curves as inline SVG, drawn by hand: no scripts, no fonts, nothing to fetch."""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 420, 240  # of the view box: text of 12 units stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 40
MAX_POINTS = 400  # as many as the plot is wide; longer runs are averaged

Points = list[tuple[float, float | None]]


def series(rows: Sequence[dict[str, Any]], name: str) -> Points:
    """(step, value) of each line that has `name`; None where it was not finite."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    return points if any(value is not None for _, value in points) else []


def curve(
    title: str,
    points: Points,
    *,
    unit: str = "",
    min_span: float = 0.0,
    mark_points: bool = False,
    x_name: str = "step",
) -> str:
    """A figure with one curve: axes, ticks, values on hover; breaks where a value is None.

    Args:
        title: the heading; escaped here.
        points: steps ascending; at least one value that is not None.
        unit: written after the values on hover, e.g. " %".
        min_span: the least height of the y axis, so that noise is not shown as a trend.
        x_name: of the horizontal axis.
        mark_points: dots on the measurements, and a line at the level of the first.
    """
    points = thin(points, MAX_POINTS)
    known = [value for _, value in points if value is not None]
    x_ticks = ticks(points[0][0], points[-1][0], 4)
    y_ticks = ticks(*_widen(min(known), max(known), min_span), 4)
    x_span = (points[0][0], max(points[-1][0], points[0][0] + 1))
    y_span = (y_ticks[0], y_ticks[-1])
    placed = [
        (_x(step, x_span), None if value is None else _y(value, y_span)) for step, value in points
    ]
    pairs = zip(placed, points, strict=True)
    marks = [_hover(at, point, unit, mark_points, x_name) for at, point in pairs]
    start = _y(known[0], y_span)
    parts = [
        _x_axis(
            [t for t in x_ticks if x_span[0] <= t <= x_span[1] and t == int(t)], x_span, x_name
        ),
        _y_axis(y_ticks, y_span),
        _line("start", LEFT, start, WIDTH - RIGHT, start) if mark_points else "",
        "".join(_path(run) for run in _runs(placed)),
        "".join(marks),
    ]
    summary = f"{title}: from {number(known[0])}{unit} to {number(known[-1])}{unit}"
    return (
        f"<figure><figcaption>{html.escape(title)}"
        f"<span>{html.escape(number(known[-1]) + unit)}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(summary)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def thin(points: Points, most: int) -> Points:
    """At most `most` points: (last step, mean of the known values) of equal stretches."""
    if len(points) <= most:
        return points
    thinned: Points = []
    for stretch in np.array_split(np.arange(len(points)), most):
        values = [points[i][1] for i in stretch]
        known = [value for value in values if value is not None]
        thinned.append((points[stretch[-1]][0], math.fsum(known) / len(known) if known else None))
    return thinned


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` + 1 round numbers (1, 2 or 5 times a power of ten) that enclose low..high."""
    if high <= low:
        high = low + 1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def number(value: float) -> str:
    """Four significant digits, thousands separated: 0.01234, 41.25, 12,345."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _widen(low: float, high: float, min_span: float) -> tuple[float, float]:
    span = max(min_span, 1e-3 * abs(low), 1e-9)
    missing = max(0.0, span - (high - low)) / 2
    return low - missing, high + missing


def _x(step: float, span: tuple[float, float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - span[0]) / (span[1] - span[0])


def _y(value: float, span: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - span[0]) / (span[1] - span[0])


def _runs(placed: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches between missing values."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in placed:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _path(run: list[tuple[float, float]]) -> str:
    if len(run) == 1:
        return f'<circle class="dot" cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="3"/>'
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
    return f'<polyline class="curve" points="{corners}"/>'


def _hover(
    at: tuple[float, float | None],
    point: tuple[float, float | None],
    unit: str,
    visible: bool,
    x_name: str,
) -> str:
    """A dot, or an unseen one, that shows its step and value under the pointer."""
    (x, y), (step, value) = at, point
    if y is None or value is None:
        return ""
    text = html.escape(f"{x_name} {number(step)}: {number(value)}{unit}")
    dot = f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' if visible else ""
    target = f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="7"><title>{text}</title></circle>'
    return dot + target


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _x_axis(values: list[float], span: tuple[float, float], name: str) -> str:
    base = HEIGHT - BOTTOM
    parts = [_line("axis", LEFT, base, WIDTH - RIGHT, base)]
    for value in values:
        x = _x(value, span)
        parts.append(_line("axis", x, base, x, base + 4))
        parts.append(
            f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{number(value)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = html.escape(name)
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _tick_labels(values: list[float]) -> list[str]:
    """All with the same number of decimals: 5.0, 5.5, 6.0."""
    decimals = max(len(number(value).partition(".")[2]) for value in values)
    if any("e" in number(value) for value in values):
        return [number(value) for value in values]
    return [f"{value:,.{decimals}f}" for value in values]


def _y_axis(values: list[float], span: tuple[float, float]) -> str:
    parts = []
    for value, label in zip(values, _tick_labels(values), strict=True):
        y = _y(value, span)
        parts.append(_line("grid", LEFT, y, WIDTH - RIGHT, y))
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    return "".join(parts)
