"""Pages of HTML that stand alone: the frame, and the parts that reports are put together from."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff;
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 2px solid #1a1a1a; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem;
  padding: 0; margin: 1rem 0; }
.facts div { border: 1px solid #999; border-radius: 4px; padding: .6rem .8rem; break-inside: avoid; }
.facts dt { font-size: .9rem; color: #333; }
.facts dd { margin: 0; }
.facts dd.value { font-size: 1.5rem; font-weight: 600; }
.facts dd.meaning { font-size: .82rem; color: #444; line-height: 1.35; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ccc; vertical-align: top; }
th { border-bottom: 2px solid #666; }
th.text, td.text { text-align: left; }
td.text { overflow-wrap: anywhere; }
td.number { white-space: nowrap; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #333; }
.busy { border: 3px solid #b30000; padding: .6rem 1rem; margin: 1rem 0; }
.busy strong { color: #b30000; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { max-width: none; margin: 0; font-size: 11pt; } tr { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$lead</p>
$busy
$sections
</main>
</body>
</html>
""")

TEXT_COLUMNS = {"policy", "parameters", "samples", "device", "run", "name", "value", "lost", "binds", "critical path"}
"""Columns of tables whose cells are words: the others are set as numbers."""


def section(title: str, *parts: str) -> str:
    """A titled part of a page, its parts in HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def cards(entries: Sequence[tuple[str, str, str]]) -> str:
    """Cards of figures: name, value, what it means."""
    found = (
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="meaning">{escape(text)}</dd></div>'
        for name, value, text in entries
    )
    return '<dl class="facts">' + "\n".join(found) + "</dl>"


def table(rows: Sequence[Mapping[str, str]], caption: str) -> str:
    """A table of text, one row per mapping; one row at least."""
    titles = list(rows[0])
    head = "".join(f'<th scope="col" class="{_kind(title)}">{escape(title)}</th>' for title in titles)
    lines = (
        "<tr>" + "".join(f'<td class="{_kind(title)}">{escape(row[title])}</td>' for title in titles) + "</tr>"
        for row in rows
    )
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _kind(title: str) -> str:
    return "text" if title in TEXT_COLUMNS else "number"


def embedded(caption: str, path: Path) -> str:
    """A figure, embedded, with its caption."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def bullets(items: Sequence[str]) -> str:
    """A list of different items; nothing where there are none."""
    if not items:
        return ""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in dict.fromkeys(items)) + "</ul>"
