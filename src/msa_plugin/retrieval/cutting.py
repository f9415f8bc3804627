"""A text cut into passages: spans of some hundred tokens that begin and end where a reader would.

A cut falls at a heading, else between paragraphs, else after a sentence or a line, else between words, else between
characters: the strongest place within reach, so that no text is too odd to be cut. Pure: characters in, spans out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int32]

SMALLEST, LARGEST = 64, 192  # tokens of a passage; a text of no more than the largest is one
_HEADING, _PARAGRAPH, _LINE, _WRAPPED = 3, 2, 1, 0  # how well a cut falls there

_MARKED = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r"([=\-~^*+#])\1{2,}[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_OWN_LINE = re.compile(r"[-*+•|>#.:@]|\d+[.)]|\t| {4}")  # how lines begin that do not go on from the one before
# Stops of sentences, those of scripts that put no space behind them (CJK), and what may close a quotation.
_STOPS, _WIDE = r".!?\u2026\u0964\u061f", r"\u3002\uff01\uff1f\uff61"
_CLOSING = r"\"'\u201d\u2019\u00bb)\]\u300d\u300f\uff09"
_ENDS = re.compile(rf"[:;{_STOPS}{_WIDE}][{_CLOSING}]*$")
_SENTENCE = re.compile(rf"[{_STOPS}][{_CLOSING}]*[ \t]+(?![a-z\u00df-\u00ff])|[{_WIDE}][{_CLOSING}]*")
_SHORTENED = re.compile(r"(?:\b[A-Z]|\n *\d+|\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|vs|cf|No|Fig|Eq|approx|e\.g|i\.e|al))\.$")
_LONGEST_HEADING, _LONG_LINE = 100, 80  # characters


class TextSpan(NamedTuple):
    """A passage: characters [start, end) of the text, tokens [first, stop) of it as encoded, and its heading."""

    start: int
    end: int
    first: int
    stop: int
    heading: str = ""


class Heading(NamedTuple):
    """A heading's words, and the characters [start, end) of its lines, underline included."""

    start: int
    end: int
    words: str


def cut(text: str, starts: Positions, smallest: int = SMALLEST, largest: int = LARGEST) -> list[TextSpan]:
    """Passages of `text`, in order, of `smallest` to `largest` tokens, each with the nearest heading before it.

    `starts` [T], ascending, are the characters at which the encoded document's tokens start; those of a title in front
    of the text are negative. A passage that begins with its heading leaves it out of its text. A text of no more than
    `largest` tokens is one passage, as it stands and without a heading.
    """
    starts = starts.astype(np.int64)  # numpy would convert all of them for every search
    first, total = int(np.searchsorted(starts, 0)), len(starts)
    if total - first <= largest:
        return [TextSpan(0, len(text), 0, total)]
    headings, positions, strengths = _places(text)
    at_tokens = np.searchsorted(starts, positions)
    spans: list[TextSpan] = []
    at, token, heading, words = 0, first, 0, ""
    while token < total:
        if total - token <= largest:
            end, stop = len(text), total
        else:
            reach = (token + smallest, min(token + largest, total - smallest))
            end = _best(text, starts, positions, strengths, at_tokens, reach)
            end = end if end > at else len(text)
            stop = int(np.searchsorted(starts, end))
        before = heading
        while heading < len(headings) and headings[heading].start < end:
            heading += 1
        inside = headings[before:heading]
        spans += _span(text, starts, at, end, words, inside)
        at, token, words = end, stop, inside[-1].words if inside else words
    return spans


def _best(
    text: str,
    starts: Positions,
    positions: Positions,
    strengths: Positions,
    at_tokens: NDArray[np.intp],
    reach: tuple[int, int],
) -> int:
    """The character to cut at, within `reach` tokens: the last of the strongest places there."""
    low, high = np.searchsorted(at_tokens, [reach[0], reach[1] + 1])
    if low < high:
        within = strengths[low:high][::-1]
        return int(positions[high - 1 - int(within.argmax())])
    begin, end = int(starts[reach[0]]), int(starts[reach[1]])
    space = max(text.rfind(mark, begin, end) for mark in " \t\u3000")
    return space + 1 if space >= 0 else end


def _span(text: str, starts: Positions, at: int, end: int, words: str, inside: list[Heading]) -> Iterator[TextSpan]:
    """The passage [at, end), without blanks around it and headings that it begins with; none where all is blank.

    `words` are of the heading before it, `inside` are those within it.
    """
    start, end = _trimmed(text, at, end)
    if start >= end:
        return
    for heading in inside:
        if heading.start == start and heading.end < end:
            start, words = _trimmed(text, heading.end, end)[0], heading.words
    first, stop = np.searchsorted(starts, [start, end])
    # A token may begin before the first character, with the space in front of it.
    first -= first > 0 and (first == len(starts) or starts[first] > start)
    yield TextSpan(start, end, int(first), max(int(stop), int(first) + 1), words)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _places(text: str) -> tuple[list[Heading], Positions, Positions]:
    """Headings, and places to cut at in order with how well a cut falls there."""
    headings, lines = _lines(text)
    places = {}
    for match in _SENTENCE.finditer(text):
        if not _SHORTENED.search(text[max(0, match.start() - 6) : match.start() + 1]):
            places[match.end()] = _LINE
    places.update(lines)
    for heading in headings:
        places[heading.start] = _HEADING
    ordered = sorted(places.items())
    return (
        headings,
        np.array([at for at, _ in ordered], dtype=np.int32),
        np.array([strength for _, strength in ordered], dtype=np.int32),
    )


def _lines(text: str) -> tuple[list[Heading], dict[int, int]]:
    """Headings, and how well a cut falls at the start of each line; none falls between a heading and what follows.

    Where no heading is marked, as in text that was a web page, short lines before long ones are taken for headings.
    """
    lines = text.split("\n")
    marked: list[Heading] = []
    bare: list[Heading] = []
    places: dict[int, int] = {}
    at, number, fenced, gap, before = 0, 0, False, True, ""
    while number < len(lines):
        line, start, taken = lines[number], at, 1
        fence = bool(_FENCE.match(line))
        if line.strip():
            taken, words = (1, "") if fenced or fence else _marked(lines, number, gap)
            own = fenced or fence or _OWN_LINE.match(line) or _ENDS.search(before.rstrip())
            places[start] = _PARAGRAPH if gap else _LINE if own else _WRAPPED
            end = start + sum(len(part) + 1 for part in lines[number : number + taken]) - 1
            if words:
                marked.append(Heading(start, end, words))
            elif not fenced and _bare(line, next(filter(str.strip, lines[number + 1 : number + 3]), "")):
                bare.append(Heading(start, end, line.strip()))
        at += sum(len(part) + 1 for part in lines[number : number + taken])
        gap, before = not line.strip(), lines[number + taken - 1]
        number, fenced = number + taken, fenced != fence
    headings = marked or bare
    for heading in headings:  # what follows a heading stays with it
        after = heading.end + 1
        while after < len(text) and text[after].isspace():
            after += 1
        places.pop(text.rfind("\n", heading.end, after) + 1, None)
    return headings, places


def _marked(lines: list[str], number: int, gap: bool) -> tuple[int, str]:
    """How many lines a heading takes that begins at `number`, and its words; 1 and "" where none does."""
    line = lines[number]
    if match := _MARKED.match(line):
        return 1, match[1].strip()
    over = _UNDERLINE.match(line)
    title = number + bool(over)
    if title + 1 >= len(lines) or not gap:
        return 1, ""
    words, under = lines[title].strip(), _UNDERLINE.match(lines[title + 1])
    if not under or not words or len(words) > _LONGEST_HEADING or _UNDERLINE.match(words):
        return 1, ""
    if (over and over[1] != under[1]) or (under[1] not in "=-" and len(under[0].strip()) < len(words)):
        return 1, ""
    return title + 2 - number, words


def _bare(line: str, following: str) -> bool:
    words = line.strip()
    return (
        1 < len(words) <= _LONGEST_HEADING
        and len(following) > max(_LONG_LINE, len(words))
        and not _OWN_LINE.match(line)
        and not _ENDS.search(words)
        and words[-1] != ","
        and words[0].isalnum()
        and not words[0].islower()
    )
