"""Markdown, reStructuredText and HTML: titles, plain text, and the encoding that a page declares.

Nothing in a page is executed, fetched or followed.
"""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

from msa_plugin.ingest.decoding import declared

_BLOCK_ELEMENTS = """
    address article aside blockquote body br caption dd details div dl dt fieldset figcaption figure footer form h1 h2
    h3 h4 h5 h6 header hr legend li main nav ol option p pre section summary table tr ul
"""
_XML_ENCODING = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._:-]+)""")
_META_CHARSET = re.compile(rb"""<meta\s[^>]*?charset\s*=\s*["']?\s*([A-Za-z0-9._:-]+)""", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?(-->|$)", re.DOTALL)
_HEAD_BYTES = 4096  # of a page that are searched for its encoding
_ZEROS, _BEYOND_UNICODE = re.compile("(?<=&#)0+(?=[0-9])"), re.compile("(?<=&#)[0-9]{8,}")


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


def rst_title(text: str) -> str:
    """The first line that a line of punctuation underlines, or ""."""
    before = ""
    for line in text.split("\n"):
        mark, title = line.rstrip(), before.strip()
        if title and re.fullmatch(r"([=\-~^\"'`#*+.:_])\1+", mark) and len(mark) >= len(title) and title[0].isalnum():
            return title
        before = line
    return ""


def declared_encoding(beginning: bytes) -> str:
    """The encoding that a page's XML declaration or <meta> names, as Python calls it, or ""."""
    beginning = _COMMENT.sub(b"", beginning[:_HEAD_BYTES])
    found = _XML_ENCODING.search(beginning) or _META_CHARSET.search(beginning)
    return declared(found[1].decode("ascii")) if found else ""


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
