"""Tables as data, and as plain text and Markdown. Names in them are data: whatever they contain, they stay text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

DASH = "\u2013"
_TIMES = "\u00d7"
_WIDE = 120
# Controls, lone surrogates, line separators, and marks that turn the direction of the text after them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#~|$])")
_LIST = re.compile(r"^(\s*)(?=[-+=])|^(\s*\d+)(?=[.)]\s)")
_LINK = re.compile(r"(?i)(https?|ftp)(:)(?=//)|(www)(\.)")


@dataclass(frozen=True)
class Cell:
    """A value, what stands small beside it (interval, ratio), a mark of significance, and whether it is the best."""

    text: str
    small: str = ""
    mark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column's name below an optional group that it shares with its neighbours; numbers stand on the right."""

    name: str
    group: str = ""
    number: bool = True

    @property
    def label(self) -> str:
        """Both in one line."""
        return f"{self.group} {self.name}".strip()


@dataclass(frozen=True)
class Table:
    """A table; rows from `summary` on are aggregates, `small` explains small print, `folded` ones are details."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    folded: bool = False
    summary: int | None = None
    small: str = ""


@dataclass(frozen=True)
class Figure:
    """A PNG: file name in plots/, what it shows for those who cannot see it, and its caption."""

    name: str
    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A chapter of the report."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


def clean(text: object, limit: int = 400) -> str:
    """Text that can be printed anywhere: controls, surrogates and direction marks replaced, overlong text cut."""
    shown = _UNPRINTABLE.sub("\ufffd", str(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def bold_best(cells: Sequence[Cell], values: Sequence[float | None], *, least: bool = False) -> list[Cell]:
    """The cells with the best of `values` marked, and all others that read the same; none when there is no choice."""
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return list(cells)
    best = cells[values.index(min(known) if least else max(known))].text
    return [replace(c, best=v is not None and c.text == best) for c, v in zip(cells, values, strict=True)]


def text(table: Table) -> str:
    """For a terminal: aligned columns, `*` after the best; small print only where it fits."""
    wide = _aligned(table, small=True)
    fits = max(map(len, wide)) <= _WIDE
    notes = [n for n in (*table.notes, table.small if fits else "") if n]
    lines = wide if fits else _aligned(table, small=False)
    return "\n".join([clean(table.title), *lines, *(f"  {clean(note)}" for note in notes)])


def _aligned(table: Table, *, small: bool) -> list[str]:
    def shown(cell: Cell) -> str:
        beside = f" ({clean(cell.small)})" if small and cell.small else ""
        return clean(cell.text, 48) + cell.mark + beside + ("*" if cell.best else "")

    body = [[clean(c.label, 48) for c in table.columns], *([shown(c) for c in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in body) for i in range(len(table.columns))]
    lines = []
    for row in body:
        padded = [v.rjust(w) if c.number else v.ljust(w) for v, w, c in zip(row, widths, table.columns, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def markdown(table: Table) -> str:
    """A GitHub table; the best in bold, small print in brackets behind the value."""
    head = "| " + " | ".join(escaped(c.label) or " " for c in table.columns) + " |"
    rule = "|" + "|".join("---:" if c.number else "---" for c in table.columns) + "|"
    body = ["| " + " | ".join(_in_markdown(c) for c in row) + " |" for row in table.rows]
    said = [n for n in (*table.notes, table.small) if n]
    notes = ["", *(f"{escaped(note)}  " for note in said)] if said else []
    return "\n".join([f"**{escaped(table.title)}**", "", head, rule, *body, *notes])


def _in_markdown(cell: Cell) -> str:
    value = escaped(cell.text) + cell.mark
    value = f"**{value}**" if cell.best else value
    return f"{value} \\[{escaped(cell.small)}\\]" if cell.small else value


def escaped(content: object) -> str:
    """Text as Markdown shows it literally: no markup, HTML, table borders or links come of it."""
    shown = clean(content).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = _LIST.sub(r"\1\2\\", _MARKDOWN.sub(r"\\\1", shown))
    return _LINK.sub(lambda m: f"{m[1] or m[3]}\\{m[2] or m[4]}", shown)


def number(value: float, metric: str = "") -> str:
    """A value with its unit, three significant digits; `metric` tells the unit."""
    if "bytes" in metric:
        return size(value)
    if "seconds" in metric:
        return duration(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(seconds) >= factor:
            return f"{_three(seconds / factor)} {unit}"
    return f"{_three(seconds * 1e6)} µs" if seconds else "0 s"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(count) >= 1024**power:
            return f"{_three(count / 1024**power)} {unit}"
    return f"{_three(count)} B"


def tokens(count: float) -> str:
    """A number of tokens as people write memory sizes: 16K is 16,384 as well as 16,000."""
    for power, unit in ((2, "M"), (1, "K")):
        for base in (1000, 1024):
            if count >= base**power and count % base**power == 0:
                return f"{count / base**power:.0f}{unit}"
    for factor, unit in ((1e6, "M"), (1e3, "K")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:g}"


def times(value: float | None) -> str:
    """A ratio."""
    if value is None:
        return DASH
    return f"{value:.2f}{_TIMES}" if abs(value) < 100 else f"{value:,.0f}{_TIMES}"


def _three(value: float) -> str:
    digits = max(0, 2 - (len(str(int(abs(value)))) - 1)) if abs(value) >= 1 else 2
    return f"{value:,.{digits}f}"


def joined(items: Iterable[str]) -> str:
    """A list in a sentence."""
    words = list(items)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
