"""Curves as inline SVG: no scripts, no fonts, nothing to fetch."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 420, 240  # the view box; text of 12 units stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 40
MAX_POINTS = 400  # about the width of the plot; longer lines are averaged
LINE_COLOURS = 8  # classes line0, line1, ... of the style sheet

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
    """Draws one or several lines with axes, ticks, and values on hover.

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
      log_x: logarithmic x axis; x must be positive.
      chosen: x of the point to mark, or (name of the line, x).
    """
    lines = points if isinstance(points, Mapping) else {"": points}
    lines = {name: thin(line, MAX_POINTS) for name, line in lines.items()}
    axes = _axes([point for line in lines.values() for point in line], min_span, log_x, x_name)
    known = {name: _known(line) for name, line in lines.items()}
    several, first = len(lines) > 1, next(iter(lines))
    parts = [_x_axis(axes), _y_axis(axes)]
    if start_line and known[first]:
        level = axes.y(known[first][0][1])
        parts.append(_line("start", LEFT, level, WIDTH - RIGHT, level))
    for place, (name, line) in enumerate(lines.items()):
        label, colour = (f"{name}, ", f" line{place % LINE_COLOURS}") if several else ("", "")
        parts.append(_draw_line(axes, line, label, unit, mark_points, colour))
    headline = "" if several else f"{number(known[first][-1][1])}{unit}"
    if chosen is not None:
        name, wanted = chosen if isinstance(chosen, tuple) else (first, chosen)
        x, value = min(known[name], key=lambda point: abs(point[0] - wanted))
        text = f"chosen, {x_name} {number(x)}: {number(value)}{unit}"
        parts.append(_circle("chosen", axes.x(x), axes.y(value), 6, text))
        headline = f"{number(value)}{unit} at {x_name} {number(x)}"
    return (
        f"<figure><figcaption>{html.escape(title)}<span>{html.escape(headline)}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(_summary(title, known, unit))}">{"".join(parts)}</svg>'
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
    values = [value for _, value in _known(points)]
    least, greatest = min(values), max(values)
    missing = max(0.0, max(min_span, 1e-3 * abs(least), 1e-9) - (greatest - least)) / 2
    y_ticks = ticks(least - missing, greatest + missing, 4)
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


def _known(line: Points) -> list[tuple[float, float]]:
    return [(x, value) for x, value in line if value is not None]


def _draw_line(axes: _Axes, line: Points, label: str, unit: str, dots: bool, colour: str) -> str:
    """One line, broken at missing values, and a hover target at every value."""
    paths, hovers = [], []
    for missing, points in itertools.groupby(line, key=lambda point: point[1] is None):
        if missing:
            continue
        run = _known(list(points))
        placed = [(axes.x(x), axes.y(value)) for x, value in run]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        polyline = f'<polyline class="curve{colour}" points="{corners}"/>'
        paths.append(polyline if len(run) > 1 else _circle(f"dot{colour}", *placed[0], 3))
        for at, (x, value) in zip(placed, run, strict=True):
            text = f"{label}{axes.x_name} {number(x)}: {number(value)}{unit}"
            if dots:
                hovers.append(_circle(f"dot{colour}", *at, 3))
            hovers.append(_circle("hit", *at, 7, text))
    return "".join([*paths, *hovers])


def _circle(kind: str, x: float, y: float, radius: int, text: str = "") -> str:
    """A dot that shows its text under the pointer."""
    title = f"<title>{html.escape(text)}</title>" if text else ""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>'


def _summary(title: str, known: Mapping[str, list[tuple[float, float]]], unit: str) -> str:
    """What a screen reader says: the first and last value of every line."""
    said = []
    for name, line in known.items():
        if line:
            label = f"{name} " if len(known) > 1 else ""
            said.append(f"{label}from {number(line[0][1])}{unit} to {number(line[-1][1])}{unit}")
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
        known = [value for _, value in _known([points[i] for i in stretch])]
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
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


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
