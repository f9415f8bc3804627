"""Bytes, Markdown and HTML into plain text: what cannot be decoded, and control characters, are counted and logged.

Nothing in a page is executed, fetched or followed.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import IO, Literal

from msa_plugin.errors import IngestError

EncodingErrors = Literal["replace", "strict"]

_LOG = logging.getLogger("msa_plugin.ingest")
_BLOCK = 1 << 20
_MAX_LINE = 1 << 26
_BOMS = (
    (codecs.BOM_UTF8, codecs.utf_8_decode, "utf-8"),
    (codecs.BOM_UTF32_LE, codecs.utf_32_le_decode, "utf-32-le"),
    (codecs.BOM_UTF32_BE, codecs.utf_32_be_decode, "utf-32-be"),
    (codecs.BOM_UTF16_LE, codecs.utf_16_le_decode, "utf-16-le"),
    (codecs.BOM_UTF16_BE, codecs.utf_16_be_decode, "utf-16-be"),
)
_BLOCK_ELEMENTS = """
    address article aside blockquote body br caption dd details div dl dt fieldset figcaption figure footer form h1 h2
    h3 h4 h5 h6 header hr legend li main nav ol option p pre section summary table tr ul
"""
_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_ZEROS, _BEYOND_UNICODE = re.compile("(?<=&#)0+(?=[0-9])"), re.compile("(?<=&#)[0-9]{8,}")


class Decoder:
    """Decodes one file in blocks and cleans its text; counts what had to be changed, and logs it at the end."""

    def __init__(self, source: str, errors: EncodingErrors) -> None:
        """`source` names the file in messages; under `errors="strict"` bad bytes raise IngestError."""
        self.source, self.errors = source, errors
        self.encoding, self.replaced, self.first, self.controls = "utf-8", 0, 0, 0

    def blocks(self, stream: IO[bytes]) -> Iterator[str]:
        """Text of `stream`, block by block; a byte order mark chooses the encoding, UTF-8 without one."""
        data = stream.read(_BLOCK)
        mark, decode, self.encoding = next((b for b in _BOMS if data.startswith(b[0])), (b"", *_BOMS[0][1:]))
        offset, data = len(mark), data[len(mark) :]
        while data:
            more = stream.read(_BLOCK)
            text, used = self._decode(decode, data, offset, final=not more)
            yield text
            offset, data = offset + used, data[used:] + more
            if not more:
                return

    def lines(self, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
        """Numbered lines of `stream`; only a newline ends one, as JSON strings may hold the other line breaks."""
        number, rest = 0, ""
        for block in self.blocks(stream):
            *whole, rest = (rest + block).split("\n")
            for line in whole:
                number += 1
                yield number, line
            if len(rest) > _MAX_LINE:
                raise IngestError(f"{self.source}, line {number + 1} is over {_MAX_LINE} characters; use shorter lines")
        if rest:
            yield number + 1, rest

    def _decode(self, decode: Callable[..., tuple[str, int]], data: bytes, offset: int, final: bool) -> tuple[str, int]:
        try:
            return decode(data, "strict", final)
        except UnicodeDecodeError as error:
            at = offset + error.start
        if self.errors == "strict":
            raise IngestError(
                f"{self.source} is not valid {self.encoding} at byte {at}; convert it, or read with 'replace'"
            )
        self.first = self.first if self.replaced else at
        text, used = decode(data, "replace", final)
        self.replaced += text.count("\ufffd") - decode(data, "ignore", final)[0].count("\ufffd")
        return text, used

    def clean(self, text: str) -> str:
        """Line breaks as newlines, without control characters and lone surrogates."""
        text, controls = _CONTROLS.subn("", _LINE_BREAKS.sub("\n", text))
        text, surrogates = _SURROGATES.subn("\ufffd", text)
        self.controls += controls + surrogates
        return text

    def log(self) -> None:
        """Say what had to be changed, if anything."""
        if self.replaced:
            message = "%s: not valid %s at byte %d; %d characters of the file were replaced with U+FFFD"
            _LOG.warning(message, self.source, self.encoding, self.first, self.replaced)
        if self.controls:
            _LOG.warning("%s: %d control characters or lone surrogates were taken out", self.source, self.controls)


def markdown_title(markdown: str) -> str:
    """The first `# heading` outside fenced code, or ""."""
    fence = ""
    for line in markdown.split("\n"):
        mark = re.match(r" {0,3}(```|~~~)", line)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
        elif not fence and (heading := re.match(r" {0,3}#[ \t]+(.*)", line)):
            return re.sub(r"(^|[ \t]+)#+[ \t]*$", "", heading[1]).strip()
    return ""


def html_to_text(html: str) -> tuple[str, str]:
    """Title (the first <title>, else the first <h1>, else "") and text of a page."""
    page = _Page()
    page.feed(_defused(html))
    page.close()
    page.end_line()
    return page.heading("title") or page.heading("h1"), "\n".join(page.lines)


def _defused(html: str) -> str:
    """The page without what html.parser fails at.

    Openings that nothing closes become text: they take quadratic time. References to characters keep few digits:
    Python refuses to read a number of more than 4300.
    """
    html = _BEYOND_UNICODE.sub("99999999", _ZEROS.sub("", html))
    for opening, closing in (("<!--", "-->"), ("<", ">")):
        end = html.rfind(closing) + 1
        html = html[:end] + html[end:].replace(opening, "&lt;" + opening[1:])
    return html


class _Page(HTMLParser):
    """Text of a page: block elements end lines, head, scripts and styles are left out, entities are decoded."""

    BLOCKS = frozenset(_BLOCK_ELEMENTS.split())
    HIDDEN = frozenset({"script", "style", "template"})
    HEAD = HIDDEN | {"head", "title", "meta", "link", "base", "noscript"}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self._line: list[str] = []
        self._heads: dict[str, list[str]] = {"title": [], "h1": []}
        self._inside: Counter[str] = Counter()
        self._named: set[str] = set()

    def heading(self, tag: str) -> str:
        """Text of the first element `tag`, one of "title" and "h1"."""
        return " ".join("".join(self._heads[tag]).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.HEAD:
            self._inside["head"] = 0  # as in browsers: anything else ends a head that was left open
        if tag in self.BLOCKS:
            self.end_line()
        elif tag in ("td", "th"):
            self._line.append(" ")
        if tag in self.HEAD or tag in ("pre", "h1"):
            self._inside[tag] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCKS:
            self.end_line()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self.end_line()
        if self._heads.get(tag):
            self._named.add(tag)
        self._inside[tag] = max(0, self._inside[tag] - 1)

    def handle_data(self, data: str) -> None:
        if any(self._inside[tag] for tag in self.HIDDEN):
            return
        for tag in self._heads:
            if self._inside[tag] and tag not in self._named:
                self._heads[tag].append(data)
        if self._inside["head"] or self._inside["title"]:
            return
        first, *rest = data.split("\n") if self._inside["pre"] else [data]
        self._line.append(first)
        for part in rest:
            self.end_line()
            self._line.append(part)

    def end_line(self) -> None:
        """Close the current line, if it has any text; only <pre> keeps its spaces."""
        line = "".join(self._line)
        self._line.clear()
        if line.strip():
            self.lines.append(line.rstrip() if self._inside["pre"] else " ".join(line.split()))

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """Treat `<![...]>` as the comment that browsers see in it; the base class raises AssertionError."""
        return self.parse_bogus_comment(i)
