"""report.html: valid, complete, self-contained and safe."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.viz.curves import curve, series, thin, ticks
from dinov2_jax.viz.page import settings_table
from dinov2_jax.viz.report import headline, write_report
from dinov2_jax.viz.sheet import crop_sheet

CONFIG = {"batch_size": 64, "model": {"variant": "vit_tiny"}, "data": {"path": "<b>a&b</b>"}}
ROWS = [
    {"step": 0, "knn_top1": 12.34},
    {"step": 10, "loss": 6.5, "loss/dino_local": 0.0, "loss/ibot": None, "images_per_s": 3.0},
    {"step": 20, "loss": None, "loss/dino_local": 0.0, "loss/ibot": 2.0, "images_per_s": 91.0},
    {"step": 30, "loss": 5.25, "loss/ibot": 1.5, "images_per_s": 92.0, "skipped_pictures": 3},
    {"step": 30, "knn_top1": 45.67},
]
VOID = {"meta", "img"}


class Balanced(HTMLParser):
    """Fails on a tag closed out of order; keeps the tags, addresses and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def report(folder: Path, rows: list[dict] | None = None, **changes) -> tuple[str, Balanced]:
    if rows is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    empty = {"crops_png": None, "pca_pairs": [], "attribution": None, "notes": []}
    write_report(folder, **({"config": CONFIG} | empty | changes))
    page = (folder / "report.html").read_text(encoding="utf-8")
    return page, Balanced(page)


def test_headline_numbers() -> None:
    assert headline(ROWS, CONFIG) == [
        ("k-NN top-1, first", "12.3 %"),
        ("k-NN top-1, last", "45.7 %"),
        ("Gain, points", "+33.3"),
        ("Steps", "30"),
        ("Images seen", "1,920"),
        ("Images a second", "91"),  # the median: not the first reading, which compiles
        ("Pictures skipped", "3"),
    ]


def test_page_shows_numbers_and_curves(tmp_path: Path) -> None:
    page, parsed = report(tmp_path, ROWS)
    for text in ("+33.3", "1,920", "step 30: 45.67 %", "step 30: 5.25", "vit_tiny"):
        assert text in parsed.text
    assert parsed.tags.count("svg") == 3  # k-NN, loss, iBOT; a part that is always 0 is left out
    assert not list(tmp_path.glob("*.tmp"))
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert "@import" not in page and "url(" not in page


def test_everything_foreign_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<i>run"
    folder.mkdir()
    rows = [{"step": 1, "loss": 1.0, "health/<u>x": 2.0}]
    page, parsed = report(folder, rows, notes=["<s>note"], attribution="<em>&who")
    for tag in ("b", "i", "u", "s", "em"):
        assert tag not in parsed.tags
    for text in ("<b>a&b</b>", "<i>run", "<u>x", "<s>note", "<em>&who"):
        assert text in parsed.text
    assert 'aria-label="&lt;u&gt;x' in page


def test_pictures_travel_inside_the_page(tmp_path: Path) -> None:
    picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    sheet = crop_sheet(np.zeros((1, 2, 8, 8, 3), np.uint8), np.zeros((1, 0, 4, 4, 3), np.uint8))
    _, parsed = report(tmp_path, ROWS, crops_png=sheet, pca_pairs=[(picture, 255 - picture)])
    prefix = "data:image/png;base64,"
    assert len(parsed.addresses) == 3 and all(a.startswith(prefix) for a in parsed.addresses)
    stored = [base64.b64decode(address.removeprefix(prefix)) for address in parsed.addresses]
    assert stored[0] == sheet
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored[2]))), 255 - picture)


@pytest.mark.parametrize("rows", [None, [], [{"step": 0, "loss": None}]])
def test_a_run_without_numbers_still_has_a_page(tmp_path: Path, rows: list[dict] | None) -> None:
    _, parsed = report(tmp_path, rows, config={})
    assert "svg" not in parsed.tags
    assert "Notes" not in parsed.text and "Crops" not in parsed.text


def test_no_knn_is_said(tmp_path: Path) -> None:
    _, parsed = report(tmp_path, [{"step": 5, "loss": 2.0}])
    assert "No k-NN" in parsed.text and "Gain" not in parsed.text


def test_half_a_line_from_a_kill_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 2.0}\n{"step": 10, "lo')
    _, parsed = report(tmp_path)
    assert "step 5: 2" in parsed.text


def test_warnings_stand_out_and_come_once(tmp_path: Path) -> None:
    page, _ = report(tmp_path, [], notes=["warning: collapse", "warning: collapse", "resumed"])
    assert page.count('<li class="warning">warning: collapse</li>') == 1
    assert "<li>resumed</li>" in page


def test_a_fall_has_a_minus_sign() -> None:
    rows = [{"step": 0, "knn_top1": 20.0}, {"step": 9, "knn_top1": 19.5}]
    assert ("Gain, points", "\N{MINUS SIGN}0.5") in headline(rows, {})


def test_curve_breaks_at_missing_values() -> None:
    points = [(1, 1.0), (2, 2.0), (3, None), (4, 2.0), (5, 1.0)]
    lines = re.findall(r'<polyline class="curve" points="([^"]+)"', curve("loss", points))
    assert [len(line.split()) for line in lines] == [2, 2]
    heights = [float(corner.split(",")[1]) for corner in lines[0].split()]
    assert heights[1] < heights[0]  # larger is higher up


def test_tick_labels_share_their_decimals() -> None:
    labels = re.findall(r'text-anchor="end">([^<]+)<', curve("loss", [(1, 5.1), (2, 6.4)]))
    assert labels == ["5.0", "5.5", "6.0", "6.5"]


def test_series_without_a_finite_value_is_empty() -> None:
    assert series([{"step": 1, "loss": None}, {"step": 2}], "loss") == []
    assert series([{"step": 1, "loss": 1.5}, {"step": 2}], "loss") == [(1, 1.5)]


def test_long_runs_are_averaged() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1001)]
    thinned = thin([*points[:-2], (999.0, None), (1000.0, None)], 500)
    assert len(thinned) == 500 and thinned[0] == (2.0, 0.5) and thinned[-1] == (1000.0, None)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1800, [0, 500, 1000, 1500, 2000]),
        (0.11, 0.29, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (3, 3, None),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list | None) -> None:
    found = ticks(low, high, 4)
    assert found[0] <= low and found[-1] >= high and len(found) >= 2
    assert expected is None or found == expected


def test_the_table_keeps_the_order_of_settings() -> None:
    nested = {"b": 1, "a": {"z": (0.1, 0.5), "y": {"x": None}}}
    cells = re.findall(r"<th[^>]*>([^<]+)</th><td>([^<]+)</td>", settings_table(nested))
    assert cells == [("b", "1"), ("a.z", "(0.1, 0.5)"), ("a.y.x", "None")]


def test_the_chosen_point_is_the_headline() -> None:
    figure = curve("accuracy", [(1, 50.0), (10, 95.0), (100, 92.5)], unit=" %", chosen=10)
    assert "<span>95 % at step 10</span>" in figure and "chosen, step 10: 95 %" in figure
    assert figure.count('class="chosen"') == 1 and 'class="start"' not in figure
    last = curve("accuracy", [(1, 50.0), (10, 95.0), (100, 92.5)], unit=" %")
    assert "<span>92.5 %</span>" in last and 'class="chosen"' not in last


def test_several_lines_share_axes_and_have_a_legend() -> None:
    lines = {"1 block": [(1, 50.0), (2, 60.0)], "4 <blocks>": [(1, 70.0), (2, None), (3, 90.0)]}
    figure = curve("accuracy", lines, chosen=("4 <blocks>", 3), x_name="rate")
    assert re.findall(r'class="curve (line\d)"', figure) == ["line0"]
    assert figure.count('class="dot line1"') == 2  # single values beside a missing one
    assert "4 &lt;blocks&gt;, rate 3: 90" in figure and "<span>90 at rate 3</span>" in figure
    assert re.findall(r'class="key (line\d)">([^<]+)<', figure) == [
        ("line0", "1 block"),
        ("line1", "4 &lt;blocks&gt;"),
    ]
    Balanced(figure)


def test_a_logarithmic_axis_places_powers_of_ten_evenly() -> None:
    points = [(10.0**power, 1.0 * power) for power in range(-4, 3)]
    figure = curve("accuracy", points, mark_points=True, log_x=True, x_name="C")
    places = [float(x) for x in re.findall(r'class="dot" cx="([\d.]+)"', figure)]
    assert len(places) == 7
    np.testing.assert_allclose(np.diff(places), np.diff(places)[0], atol=0.11)
    assert ">0.0001<" in figure and ">100<" in figure
    assert 'class="dot"' in curve("one value", [(0.1, 1.0)], mark_points=True, log_x=True)
