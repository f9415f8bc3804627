"""Tables and chapters as data, as Markdown and as plain text. Names in them stay text, whatever they contain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from msa_plugin.bench.command import aligned
from msa_plugin.bench.report_rows import ratio
from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.units import DASH, bounds, number, times

_WIDE = 120
# Controls, lone surrogates, line separators, and marks that turn the direction of the text after them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#~|$])")
_LIST = re.compile(r"^(\s*)(?=[-+=])|^(\s*\d+)(?=[.)]\s)")
_LINK = re.compile(r"(?i)(https?|ftp)(:)(?=//)|(www)(\.)")


@dataclass(frozen=True)
class Cell:
    """A text, what stands small beside it, a mark of significance, the number behind it, whether that is the best."""

    text: str
    small: str = ""
    mark: str = ""
    value: float | None = None
    best: bool = False

    @classmethod
    def of(cls, row: ResultRow | None, base: ResultRow | None = None, mark: str = "") -> Cell:
        """A row's value; small its interval and its ratio to `base`, where they can be compared."""
        if row is None:
            return cls(DASH)
        over = None if base is row else ratio(row, base)
        small = [bounds(row.low, row.high, row.metric), "" if over is None else times(over)]
        return cls(number(row.value, row.metric), ", ".join(s for s in small if s), mark, row.value)

    @classmethod
    def mean(cls, value: float | None, metric: str = "") -> Cell:
        """A number without an interval, a dash for None."""
        return cls(number(value, metric), value=value)


@dataclass(frozen=True)
class Table:
    """A table whose first `words` columns stand left; `small` explains small print, `folded` ones are details."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: Sequence[str] = ()
    folded: bool = False
    words: int = 1
    small: str = ""

    @classmethod
    def of_texts(cls, title: str, heads: Sequence[str], body: Iterable[Iterable[str]], words: int) -> Table:
        """A table of plain texts."""
        return cls(title, tuple(heads), tuple(tuple(map(Cell, line)) for line in body), words=words)

    def markdown(self) -> str:
        """A GitHub table below its title; the best in bold, small print in brackets behind the value."""
        rule = "|" + "|".join("---" if i < self.words else "---:" for i in range(len(self.heads))) + "|"
        body = ["| " + " | ".join(map(_in_markdown, row)) + " |" for row in self.rows]
        said = [note for note in (*self.notes, self.small) if note]
        notes = ["", *(f"{escaped(note)}  " for note in said)] if said else []
        head = "| " + " | ".join(escaped(head) or " " for head in self.heads) + " |"
        return "\n".join([f"**{escaped(self.title)}**", "", head, rule, *body, *notes])

    def text(self) -> str:
        """For a terminal: `*` after the best; small print only where it fits."""
        wide = self._aligned(small=True)
        fits = max(map(len, wide.splitlines())) <= _WIDE
        notes = [f"  {clean(note)}" for note in (*self.notes, self.small if fits else "") if note]
        return "\n".join([clean(self.title), wide if fits else self._aligned(small=False), *notes])

    def _aligned(self, *, small: bool) -> str:
        def shown(cell: Cell) -> str:
            beside = f" ({clean(cell.small)})" if small and cell.small else ""
            return clean(cell.text, 48) + cell.mark + beside + ("*" if cell.best else "")

        return aligned([clean(head, 48) for head in self.heads], [list(map(shown, row)) for row in self.rows])


@dataclass(frozen=True)
class Figure:
    """A PNG: file name in plots/ and caption; the tables tell the numbers to those who cannot see it."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """A chapter of the report; `code` is shown as it is, letter by letter."""

    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    code: str = ""

    def markdown(self, tables: Sequence[Table] | None = None, level: int = 2) -> str:
        """The chapter with all its tables, or with some of them."""
        blocks = [f"{'#' * level} {escaped(self.title)}", *(escaped(p, 4000) for p in self.text)]
        for figure in self.figures:
            blocks += [f"![{escaped(figure.caption)}](plots/{figure.name})", escaped(figure.caption)]
        blocks += [table.markdown() for table in (self.tables if tables is None else tables)]
        blocks += ["\n".join("    " + clean(line, 4000) for line in self.code.split("\n"))] if self.code else []
        return "\n\n".join(blocks)


def bold_best(cells: Sequence[Cell], *, least: bool = False) -> list[Cell]:
    """The cells with the best value marked, and all others that read the same; none when there is no choice."""
    known = [c for c in cells if c.value is not None]
    if len(known) < 2:
        return list(cells)
    best = (min if least else max)(known, key=lambda c: c.value or 0.0)
    return [replace(c, best=c.value is not None and c.text == best.text) for c in cells]


def clean(text: object, limit: int = 400) -> str:
    """Text that can be printed anywhere: controls, surrogates and direction marks replaced, overlong text cut."""
    shown = _UNPRINTABLE.sub("\ufffd", str(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def escaped(content: object, limit: int = 400) -> str:
    """Text as Markdown shows it literally: no markup, HTML, table borders or links come of it."""
    shown = clean(content, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = _LIST.sub(r"\1\2\\", _MARKDOWN.sub(r"\\\1", shown))
    return _LINK.sub(lambda m: f"{m[1] or m[3]}\\{m[2] or m[4]}", shown)


def joined(items: Iterable[object]) -> str:
    """A list in a sentence."""
    words = list(map(str, items))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _in_markdown(cell: Cell) -> str:
    value = escaped(cell.text) + cell.mark
    value = f"**{value}**" if cell.best else value
    return f"{value} \\[{escaped(cell.small)}\\]" if cell.small else value
