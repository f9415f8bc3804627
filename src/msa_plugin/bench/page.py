"""The report as one HTML file: styles and images inside, no script, nothing fetched, everything escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from itertools import groupby

from msa_plugin.bench.report_tables import Cell, Column, Figure, Section, Table, clean

_STYLE = """
:root { --ink: #1d1f21; --soft: #5f6670; --rule: #d9dce1; --faint: #f3f5f8; --paper: #fff; --accent: #00609a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e9; --soft: #9aa3ae; --rule: #363c45; --faint: #1e2329; --paper: #14171b; --accent: #6cb8ea; }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .9rem; letter-spacing: -.015em; }
h2 { font-size: 1.35rem; margin: 3.2rem 0 .8rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.9rem 0 .5rem; }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
a { color: var(--accent); }
nav { margin: 1.4rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .92rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
pre { background: var(--faint); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .82rem; }
.wide { overflow-x: auto; margin: .4rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
td { max-width: 26rem; overflow-wrap: break-word; }
td.n { white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid var(--soft); }
thead tr.groups th { border-bottom: 1px solid var(--rule); text-align: center; padding-bottom: .1rem; }
thead tr.groups th:empty { border: 0; }
th.n, td.n { text-align: right; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--paper); min-width: 6.5rem; max-width: 16rem;
  overflow-wrap: break-word; }
tbody tr:last-child > * { border-bottom: 0; }
tbody tr.sum > * { background: var(--faint); }
tbody tr:hover > * { background: var(--faint); }
td b { color: var(--accent); }
td small { display: block; color: var(--soft); font-size: .74rem; line-height: 1.25; }
.notes { font-size: .82rem; color: var(--soft); }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; font-size: .95rem; padding: .2rem 0; color: var(--accent); }
figure { margin: 1.6rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: .6rem;
  border: 1px solid var(--rule); }
figcaption { font-size: .84rem; color: var(--soft); margin-top: .5rem; max-width: 46rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding: 1.4rem .9rem 3rem; }
  table { font-size: .8rem; }
  th, td { padding: .3rem .5rem; }
  tbody th { min-width: 5.5rem; max-width: 9rem; }
}
@media print {
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: .7rem; }
  td, th { padding: .2rem .4rem; overflow-wrap: anywhere; }
  td.n { white-space: normal; }
  pre { white-space: pre-wrap; }
}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, lead: Sequence[str], sections: Sequence[Section], raw: Sequence[tuple[str, str]] = ()) -> str:
    """The whole file. `raw` are titled texts shown as they are, folded, at the end."""
    links = "".join(f'<a href="#s{i}">{_text(s.title)}</a>' for i, s in enumerate(sections))
    body = [f"<h1>{_text(title)}</h1>", *(f"<p>{_text(p, 4000)}</p>" for p in lead), f"<nav>{links}</nav>"]
    body += [_section(i, section) for i, section in enumerate(sections)]
    for name, content in raw:
        lines = "\n".join(_text(line, 4000) for line in content.split("\n"))
        body.append(f"<details><summary>{_text(name)}</summary><pre>{lines}</pre></details>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _section(index: int, section: Section) -> str:
    shown = [t for t in section.tables if not t.folded]
    folded = [t for t in section.tables if t.folded]
    parts = [f'<section id="s{index}"><h2>{_text(section.title)}</h2>']
    parts += [f"<p>{_text(p, 4000)}</p>" for p in section.text]
    parts += [_figure(f) for f in section.figures]
    parts += [f"<h3>{_text(t.title)}</h3>{_table(t)}" for t in shown]
    parts += [f"<details><summary>{_text(t.title)}</summary>{_table(t)}</details>" for t in folded]
    return "\n".join([*parts, "</section>"])


def _figure(figure: Figure) -> str:
    source = "data:image/png;base64," + b64encode(figure.png).decode("ascii")
    alt = _text(figure.alt, 2000)
    return f'<figure><img alt="{alt}" src="{source}"><figcaption>{_text(figure.caption)}</figcaption></figure>'


def _table(table: Table) -> str:
    rows = []
    for number, row in enumerate(table.rows):
        kind = ' class="sum"' if table.summary is not None and number >= table.summary else ""
        cells = [_cell(c, column, first=i == 0) for i, (c, column) in enumerate(zip(row, table.columns, strict=True))]
        rows.append(f"<tr{kind}>{''.join(cells)}</tr>")
    said = " ".join(_text(n) for n in (*table.notes, table.small) if n)
    notes = f'<p class="notes">{said}</p>' if said else ""
    return f'<div class="wide"><table>{_head(table.columns)}<tbody>{"".join(rows)}</tbody></table></div>{notes}'


def _head(columns: Sequence[Column]) -> str:
    names = "".join(f"<th{_side(c)}>{_text(c.name)}</th>" for c in columns)
    if not any(c.group for c in columns):
        return f"<thead><tr>{names}</tr></thead>"
    spans = [(group, len(list(some))) for group, some in groupby(columns, key=lambda c: c.group)]
    groups = "".join(f'<th colspan="{span}">{_text(group)}</th>' for group, span in spans)
    return f'<thead><tr class="groups">{groups}</tr><tr>{names}</tr></thead>'


def _cell(cell: Cell, column: Column, *, first: bool) -> str:
    value = _text(cell.text)
    value = f"<b>{value}</b>" if cell.best else value
    small = f"<small>{_text(cell.small)}</small>" if cell.small else ""
    tag = "th" if first else "td"
    return f"<{tag}{_side(column)}>{value}{_text(cell.mark)}{small}</{tag}>"


def _side(column: Column) -> str:
    return ' class="n"' if column.number else ""


def _text(content: str, limit: int = 400) -> str:
    return escape(clean(content, limit), quote=True)
