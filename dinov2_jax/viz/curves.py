"""Curves as inline SVG: no scripts, no fonts, nothing to fetch."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 420, 240  # the view box; text of 12 units stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 40
MAX_POINTS = 400  # about the width of the plot; longer lines are averaged
LINE_COLOURS = 4  # classes line0, line1, ... of the style sheet

Points = list[tuple[float, float | None]]


def series(rows: Sequence[dict[str, Any]], name: str) -> Points:
    """(step, value) of each row that has `name`; None where the value was not finite."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    return points if any(value is not None for _, value in points) else []


def curve(
    title: str,
    points: Points | Mapping[str, Points],
    *,
    unit: str = "",
    min_span: float = 0.0,
    mark_points: bool = False,
    start_line: bool = False,
    x_name: str = "step",
    log_x: bool = False,
    chosen: float | tuple[str, float] | None = None,
) -> str:
    """Draws a figure of one or several lines: axes, ticks, values on hover.

    A line breaks where a value is None. The headline is the value of the chosen point, or else the
    last value of a single line.

    Args:
      title: the heading; escaped here.
      points: (x, value) with x ascending and at least one value that is not None; or such lines by
        name, which get a legend.
      unit: written after the values, such as " %".
      min_span: least height of the y axis, so that noise does not look like a trend.
      mark_points: draw a dot at every value.
      start_line: draw a dashed line at the level of the first value.
      x_name: name of the x axis.
      log_x: place x by its logarithm; x must be positive.
      chosen: x of the point to mark, with the line's name before it if there are several lines.
    """
    lines = points if isinstance(points, Mapping) else {"": points}
    lines = {name: thin(line, MAX_POINTS) for name, line in lines.items()}
    axes = _axes([point for line in lines.values() for point in line], min_span, log_x, x_name)
    several = len(lines) > 1
    drawn = [
        _draw_line(axes, line, f"{name}, " if several else "", unit, mark_points, number_of_line)
        for number_of_line, (name, line) in enumerate(lines.items())
    ]
    known = [value for _, value in next(iter(lines.values())) if value is not None]
    start = axes.y(known[0]) if known else None
    parts = [
        _x_axis(axes),
        _y_axis(axes),
        _line("start", LEFT, start, WIDTH - RIGHT, start) if start_line and start else "",
        *drawn,
        _mark(axes, *_find(lines, chosen), unit) if chosen is not None else "",
    ]
    headline = _headline(lines, chosen, unit, x_name)
    return (
        f"<figure><figcaption>{html.escape(title)}<span>{html.escape(headline)}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(_summary(title, lines, unit))}">{"".join(parts)}</svg>'
        f"{_legend(list(lines)) if several else ''}</figure>"
    )


class _Axes(NamedTuple):
    """The range of both axes, their ticks, and the way from values to the view box."""

    x_span: tuple[float, float]
    y_span: tuple[float, float]
    x_ticks: list[float]
    y_ticks: list[float]
    log_x: bool
    x_name: str

    def x(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log_x else v for v in (*self.x_span, value))
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_span
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def _axes(points: Points, min_span: float, log_x: bool, x_name: str) -> _Axes:
    xs = [x for x, _ in points]
    known = [value for _, value in points if value is not None]
    y_ticks = ticks(*_widen(min(known), max(known), min_span), 4)
    low, high = min(xs), max(xs)
    if log_x:
        high = high if high > low else 10 * low
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        step = max(1, -(-(last - first) // 5))
        x_ticks = [10.0**power for power in range(first, last + 1, step)]
    else:
        high = max(high, low + 1)
        whole = ticks(low, high, 4)
        x_ticks = [tick for tick in whole if low <= tick <= high and tick == int(tick)]
    return _Axes((low, high), (y_ticks[0], y_ticks[-1]), x_ticks, y_ticks, log_x, x_name)


def _draw_line(
    axes: _Axes, line: Points, label: str, unit: str, dots: bool, number_of_line: int
) -> str:
    """One line, and a hover target at every value."""
    placed = [(axes.x(x), None if y is None else axes.y(y)) for x, y in line]
    colour = f" line{number_of_line % LINE_COLOURS}" if label else ""
    paths = [_path(run, colour) for run in _runs(placed)]
    hovers = [
        _hover(at, f"{label}{axes.x_name} {number(x)}: {number(value)}{unit}", dots, colour)
        for at, (x, value) in zip(placed, line, strict=True)
        if value is not None
    ]
    return "".join([*paths, *hovers])


def _find(lines: Mapping[str, Points], chosen: float | tuple[str, float]) -> tuple[float, float]:
    """The chosen point (x, value): the one of its line that is nearest in x."""
    name, x = chosen if isinstance(chosen, tuple) else (next(iter(lines)), chosen)
    known = [(at, value) for at, value in lines[name] if value is not None]
    return min(known, key=lambda point: abs(point[0] - x))


def _mark(axes: _Axes, x: float, value: float, unit: str) -> str:
    text = html.escape(f"chosen, {axes.x_name} {number(x)}: {number(value)}{unit}")
    at = f'cx="{axes.x(x):.1f}" cy="{axes.y(value):.1f}"'
    return f'<circle class="chosen" {at} r="6"><title>{text}</title></circle>'


def _headline(
    lines: Mapping[str, Points],
    chosen: float | tuple[str, float] | None,
    unit: str,
    x_name: str,
) -> str:
    if chosen is not None:
        x, value = _find(lines, chosen)
        return f"{number(value)}{unit} at {x_name} {number(x)}"
    if len(lines) > 1:
        return ""
    return (
        number([value for _, value in next(iter(lines.values())) if value is not None][-1]) + unit
    )


def _summary(title: str, lines: Mapping[str, Points], unit: str) -> str:
    """What a screen reader says: the first and last value of every line."""
    said = []
    for name, line in lines.items():
        known = [value for _, value in line if value is not None]
        if known:
            label = f"{name} " if len(lines) > 1 else ""
            said.append(f"{label}from {number(known[0])}{unit} to {number(known[-1])}{unit}")
    return f"{title}: {'; '.join(said)}"


def _legend(names: Sequence[str]) -> str:
    entries = "".join(
        f'<span class="key line{place % LINE_COLOURS}">{html.escape(name)}</span>'
        for place, name in enumerate(names)
    )
    return f'<p class="legend">{entries}</p>'


def thin(points: Points, most: int) -> Points:
    """Reduces points to at most `most`: (last x, mean of the known values) of equal stretches."""
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


def _runs(placed: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Splits a line at its missing values."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in placed:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _path(run: list[tuple[float, float]], colour: str) -> str:
    if len(run) == 1:
        return f'<circle class="dot{colour}" cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="3"/>'
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
    return f'<polyline class="curve{colour}" points="{corners}"/>'


def _hover(at: tuple[float, float | None], text: str, visible: bool, colour: str) -> str:
    """A dot, or an invisible one, that shows its text under the pointer."""
    place = f'cx="{at[0]:.1f}" cy="{at[1]:.1f}"'
    dot = f'<circle class="dot{colour}" {place} r="3"/>' if visible else ""
    title = f"<title>{html.escape(text)}</title>"
    return f'{dot}<circle class="hit" {place} r="7">{title}</circle>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _x_axis(axes: _Axes) -> str:
    base = HEIGHT - BOTTOM
    parts = [_line("axis", LEFT, base, WIDTH - RIGHT, base)]
    for value in axes.x_ticks:
        x = axes.x(value)
        parts.append(_line("axis", x, base, x, base + 4))
        text = number(value)
        place = min(x, WIDTH - 3.6 * len(text))  # a long one at the end stays inside
        parts.append(f'<text x="{place:.1f}" y="{base + 18}" text-anchor="middle">{text}</text>')
    middle, label = (LEFT + WIDTH - RIGHT) / 2, html.escape(axes.x_name)
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _tick_labels(values: list[float]) -> list[str]:
    """Labels with the same number of decimals: 5.0, 5.5, 6.0."""
    decimals = max(len(number(value).partition(".")[2]) for value in values)
    if any("e" in number(value) for value in values):
        return [number(value) for value in values]
    return [f"{value:,.{decimals}f}" for value in values]


def _y_axis(axes: _Axes) -> str:
    parts = []
    for value, label in zip(axes.y_ticks, _tick_labels(axes.y_ticks), strict=True):
        y = axes.y(value)
        parts.append(_line("grid", LEFT, y, WIDTH - RIGHT, y))
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    return "".join(parts)
