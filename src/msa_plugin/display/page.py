"""Building blocks of what notebooks show. Whatever comes from documents is escaped here.

Colours are half transparent over the page's own, so that one style fits light and dark. Without the style, as where a
notebook is not trusted, the same elements still read as text. `!important` stands where notebooks style all tables.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tab and newline; lone surrogates
_COLOURS = {
    "keys": "#4a8fdc",
    "words": "#dd9317",
    "names": "#3ea37a",
    "recency": "#cf6679",
    "encode": "#4a8fdc",
    "route": "#8a77d9",
    "passages": "#dd9317",
    "gather": "#dd9317",
    "prefill": "#3ea37a",
    "decode": "#cf6679",
}
_STYLE = """\
.msa{font-size:13px;line-height:1.5;max-width:64em;overflow-wrap:anywhere;text-align:left}
.msa p{margin:.2em 0}
.msa .dim{opacity:.72}
.msa code{font-size:.92em!important;background:none!important;color:inherit!important;padding:0!important}
.msa mark{background:rgba(240,180,0,.36);color:inherit;padding:0 1px;border-radius:2px}
.msa .chunk{background:rgba(74,143,220,.2)}
.msa u{text-decoration:underline 2px #cf6679;text-underline-offset:3px}
.msa .item{margin:.9em 0;padding-left:.8em;border-left:3px solid rgba(128,128,128,.3)}
.msa .bar{display:flex;height:7px;margin:.25em 0;background:rgba(128,128,128,.18);border-radius:3px;overflow:hidden}
.msa .bar span{display:block;height:100%}
.msa .dot{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.3em}
.msa .key{margin-right:1em;white-space:nowrap}
.msa .text{white-space:pre-line;max-height:26em;overflow:auto}
.msa table{border-collapse:collapse;margin:.4em 0;font-size:inherit;overflow-wrap:break-word}
.msa tr,.msa th,.msa td{background:none!important;border:0!important;color:inherit!important}
.msa th,.msa td{text-align:left!important;vertical-align:top!important;padding:.15em 1em .15em 0!important}
.msa td.n,.msa th.n{text-align:right!important;font-variant-numeric:tabular-nums;white-space:nowrap}
.msa summary{cursor:pointer}
.msa .answer{font-size:1.25em}"""


class MarkedSpan(NamedTuple):
    """Characters [start, end) of a text, and the elements that open and close around them."""

    start: int
    end: int
    opens: str
    closes: str


def page(*parts: str) -> str:
    """A result as a page shows it. Dollar signs in it are no formulas."""
    return f'<style>{_STYLE}</style><div class="msa tex2jax_ignore mathjax_ignore">{"".join(parts)}</div>'


def printable(text: str) -> str:
    """Text without what a terminal or a page would obey or could not encode, such as escape sequences."""
    return _CONTROLS.sub("\ufffd", text)


def escaped(text: str) -> str:
    """Text as text, whatever it holds."""
    return html.escape(printable(text))


def inline(text: str) -> str:
    """The same within a line, whose order of characters it does not change."""
    return f"<bdi>{escaped(text)}</bdi>"


def line(*parts: str, dim: bool = False) -> str:
    """A paragraph of parts that are HTML already, nothing where all are empty."""
    kind = ' class="dim"' if dim else ""
    return f"<p{kind}>{' '.join(parts)}</p>" if any(parts) else ""


def words(spans: Iterable[tuple[int, int]]) -> list[MarkedSpan]:
    """Words of the question."""
    return [MarkedSpan(start, end, "<mark>", "</mark>") for start, end in spans]


def quoted(spans: Iterable[tuple[int, int]]) -> list[MarkedSpan]:
    """Words that say what an answer says."""
    return [MarkedSpan(start, end, "<u>", "</u>") for start, end in spans]


def chunk(start: int, end: int, score: float | None = None, strength: float | None = None) -> MarkedSpan:
    """What one routing key was made of, shaded by `strength` (0 to 1), and its score to point at."""
    shade = "" if strength is None else f' style="background:rgba(74,143,220,{0.45 * strength:.2f})"'
    said = "" if score is None else f' title="{score:.3f}"'
    return MarkedSpan(start, end, f'<span class="chunk"{shade}{said}>', "</span>")


def spanned(text: str, spans: Sequence[MarkedSpan], start: int = 0, end: int | None = None) -> str:
    """Characters [start, end) of a text, with elements around spans, which may overlap; ellipses where it goes on."""
    end = len(text) if end is None else min(end, len(text))
    edges = {start, end, *(at for span in spans for at in span[:2] if start < at < end)}
    places, parts = sorted(edges), []
    for first, last in pairwise(places):
        around = [span for span in spans if span.start <= first and last <= span.end]
        opens, closes = "".join(s.opens for s in around), "".join(s.closes for s in reversed(around))
        parts.append(f"{opens}{escaped(text[first:last])}{closes}")
    before, after = "\u2026 " if start > 0 else "", " \u2026" if end < len(text) else ""
    return before + "".join(parts) + after


def window(text: str, around: tuple[int, int], size: int) -> tuple[int, int]:
    """At most `size` characters of a text that hold the middle of `around`; whole words where there are blanks."""
    if len(text) <= size:
        return 0, len(text)
    start = max(0, min(sum(around) // 2 - size // 2, len(text) - size))
    end = start + size
    blank = text.find(" ", start, start + 40) if start else -1
    last = text.rfind(" ", end - 40, end) if end < len(text) else -1
    return (blank + 1 if blank >= 0 else start), (last if last >= 0 else end)


def bar(parts: Mapping[str, float], total: float) -> str:
    """A bar of coloured parts, as long as their share of a total."""
    pieces = [
        f'<span style="width:{100 * max(value, 0.0) / max(total, 1e-9):.1f}%;background:{_colour(name)}"></span>'
        for name, value in parts.items()
    ]
    return f'<div class="bar">{"".join(pieces)}</div>'


def key(name: str, said: str) -> str:
    """What a colour of a bar stands for, and how much it is."""
    dot = f'<span class="dot" style="background:{_colour(name)}"></span>'
    return f'<span class="key">{dot}{escaped(name)} {escaped(said)}</span>'


def _colour(name: str) -> str:
    return _COLOURS.get(name, "#9a9a9a")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns `numbers` stand to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if place in numbers else "" for place in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    return f"<table>{row(heads, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def folded(summary: str, inside: str) -> str:
    """Something that opens when it is clicked; both are HTML already."""
    return f"<details><summary>{summary}</summary>{inside}</details>"


def seconds(value: float) -> str:
    """A duration for people."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def many(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
