"""Parts of a page: one style sheet and the pieces of HTML that every section uses."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from dinov2_jax.config.files import leaves

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1f23; --quiet: #646b75;
  --rule: #dfe2e6; --accent: #2458b8; --warning: #9a4a00; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --text: #e4e6e9;
  --quiet: #98a0ab; --rule: #31363d; --accent: #7fabff; --warning: #f0a860; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 44rem; }
.quiet, figcaption { color: var(--quiet); font-size: .875rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.2rem, 1fr)); gap: 1rem;
  margin: 1.5rem 0; padding: 1rem 0; border: solid var(--rule); border-width: 1px 0; }
dt { color: var(--quiet); font-size: .875rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.curves { display: grid; gap: 1.25rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.pairs { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { display: flex; justify-content: space-between; }
.curves figcaption { color: var(--text); }
figcaption span { font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 12px; font-variant-numeric: tabular-nums; }
.axis { stroke: var(--quiet); } .grid { stroke: var(--rule); }
.start { stroke: var(--quiet); stroke-dasharray: 4 4; }
.curve { fill: none; stroke: var(--accent); stroke-width: 1.75; stroke-linejoin: round; }
.dot { fill: var(--accent); } .chosen { fill: none; stroke: var(--text); stroke-width: 2; }
.line0 { --line: var(--accent); } .line1 { --line: #d07000; } .line2 { --line: #2e9a57; }
.line3 { --line: #a34fc4; } .line4 { --line: #c43a4f; } .line5 { --line: #1c98a8; }
.line6 { --line: #8a7a1c; } .line7 { --line: #7a808a; }
.curve[class*=line] { stroke: var(--line); } .dot[class*=line] { fill: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem;
  margin: 0; color: var(--quiet); font-size: .875rem; }
.key::before { content: ""; display: inline-block; width: 1rem; height: .2rem;
  margin-right: .35rem; vertical-align: middle; background: var(--line); }
.hit { fill: transparent; } .hit:hover { fill: var(--accent); }
img { display: block; image-rendering: pixelated; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px;
  outline: 1px solid var(--rule); }
.pair img { width: 100%; height: auto; }
.sheet { overflow-x: auto; } .sheet img { min-width: min(40rem, 100vw * 2); width: 100%; }
.plates { display: grid; gap: 1.5rem; } .plate img { width: 100%; height: auto;
  image-rendering: auto; } .plate figcaption { margin-top: .25rem; max-width: 44rem; }
ul { padding-left: 1.2rem; } .warning { color: var(--warning); }
.lines { white-space: pre-line; }
details { margin-top: 1rem; } summary { cursor: pointer; font-weight: 600; font-size: 1.1rem; }
table { border-collapse: collapse; font-size: .875rem; margin-top: .5rem; }
a { color: var(--accent); }
td, th { text-align: left; vertical-align: top; padding: .2rem 1.25rem .2rem 0;
  border-bottom: 1px solid var(--rule); font-weight: 400; }
th { color: var(--quiet); }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """Puts sections of HTML into a page; escapes `title`."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def section(heading: str, body: str, lead: str = "") -> str:
    """A heading and its content; "" without content."""
    lead = f'<p class="quiet">{html.escape(lead)}</p>' if lead else ""
    return f"<section><h2>{html.escape(heading)}</h2>\n{lead}{body}</section>" if body else ""


def folded(heading: str, body: str) -> str:
    """A section that opens on a click; "" without content."""
    summary = f"<summary>{html.escape(heading)}</summary>"
    return f"<details>{summary}\n{body}</details>" if body else ""


def picture(png: bytes, text: str) -> str:
    """An <img> that holds its file within the page."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}">'


def numbers(entries: Sequence[tuple[str, str]]) -> str:
    """Names with a value each, in large type."""
    texts = ((html.escape(name), html.escape(value)) for name, value in entries)
    cells = (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in texts)
    return f"<dl>{''.join(cells)}</dl>" if entries else ""


def table(entries: Sequence[tuple[str, str]]) -> str:
    """Two columns: names and values."""
    texts = ((html.escape(name), html.escape(value)) for name, value in entries)
    rows = (f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in texts)
    return f"<table>{''.join(rows)}</table>" if entries else ""


def settings_table(settings: Mapping[str, Any]) -> str:
    """Nested settings as a table of dotted names, in their order."""
    return table([(name, str(value)) for name, value in leaves(settings).items()])


def note_list(notes: Sequence[str]) -> str:
    """A section of sentences, each once; those that begin with "warning" stand out."""

    def item(note: str) -> str:
        mark = ' class="warning"' if note.lower().startswith("warning") else ""
        return f"<li{mark}>{html.escape(note)}</li>"

    items = map(item, dict.fromkeys(notes))
    return section("Notes", f"<ul>{''.join(items)}</ul>" if notes else "")
