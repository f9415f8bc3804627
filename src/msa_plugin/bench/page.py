"""The report as one HTML file: styles and images inside, no script, nothing fetched, everything escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib import resources
from itertools import groupby

from msa_plugin.bench.report_tables import Cell, Column, Figure, Section, Table, clean

_STYLE = "\n" + (resources.files("msa_plugin.bench") / "report.css").read_text(encoding="utf-8")
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
