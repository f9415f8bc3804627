"""Where the words of an answer stand in the text that it was read from.

Words are compared without case, accents and punctuation; numbers in digits or as words, and dates in whatever order
and spelling ("March 12, 1821", "12 march 1821", "1821-03-12"). An answer that is no run of words of a text stands in a
sentence that holds all of its words, but for the little ones and for those that the question said.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from msa_plugin.types import Quote, Source

# Scripts without spaces are read by characters, others by words; C++ and C# are words of their own.
SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"\d+(?:\0\d+)+|[{SPACELESS}]|[^\W_{SPACELESS}]+(?:[+#]{{1,2}}(?!\w))?")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")  # 1,821
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_MONTH = {name: n for n, full in enumerate(_MONTHS, 1) for name in (full, full[:3], "sept" if n == 9 else full)}
_UP_TO_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NUMBERS = {word: str(n) for n, word in enumerate(_UP_TO_TWENTY)}
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)")
_LITTLE = frozenset(
    [
        *("a", "an", "the", "of", "in", "on", "at", "to", "by", "for", "from", "with", "as", "and", "or", "is", "are"),
        *("was", "were", "be", "been", "it", "its", "he", "she", "they", "that", "this", "there"),
    ]
)
_JUDGEMENTS = frozenset(("yes", "no", "true", "false"))  # of a text, seldom words in it
_CLOSING = r"[\"'\u201d\u2019\u00bb)\]]*"
_ENDS = re.compile(
    rf"[.!?\u2026\u0964\u061f]{_CLOSING}\s+(?![a-z\u00df-\u00ff])"  # a stop, a space, and no small letter
    r"|[\u3002\uff01\uff1f\uff61][\u201d\u2019\u300f\u300d\uff09]*"  # a stop of a script that needs no space
    r"|\n\s*\n|\n(?=[ \t]*(?:[-*+\u2022|>#]|\d+[.)]))"
)
_SHORTENED = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|vs|cf|No|Fig|Eq|e\.g|i\.e|al|c|ca))\.$")
_PARTS = re.compile(r"\s*[,;\n]\s*(?:and\s+)?|\s+and\s+")


class _Token(NamedTuple):
    """A word as it is compared, and characters [start, end) that it stands at."""

    word: str
    start: int
    end: int


def is_judgement(answer: str) -> bool:
    """Whether an answer says yes or no, about a text and seldom in its words."""
    words = [token.word for token in _tokens(answer)]
    return bool(words) and words[0] in _JUDGEMENTS and (len(words) == 1 or answer.strip()[len(words[0])] in ",.;:!-")


def quotes(answer: str, question: str, text: str, offset: int = 0) -> tuple[Quote, ...]:
    """Where `text` says what the answer says, in its order; nothing where it does not.

    A list of things may be quoted in several places, all of which must be there. Of several places for the same words
    the one counts whose sentence says most of the question. `offset` is added to every position.
    """
    read = _Read(text, question)
    whole = read.place(answer)
    parts = [part for part in _PARTS.split(answer) if _needle(part)] if whole is None else []
    each = [whole] if whole is not None else [read.place(part) for part in parts] if len(parts) > 1 else []
    places = {place for place in each if place is not None}
    if not each or None in each:
        return ()
    return tuple(read.quote(start, end, offset) for start, end in sorted(places))


def grounded(
    answer: str, question: str, sources: Sequence[Source]
) -> tuple[bool | None, tuple[tuple[Quote, ...], ...]]:
    """Whether some source says what the answer says, and where each of them does.

    None, and no place, for an answer that says yes or no or has no word of its own, and where nothing was read.
    """
    nowhere: tuple[tuple[Quote, ...], ...] = tuple(() for _ in sources)
    if not sources or is_judgement(answer) or not _needle(answer):
        return None, nowhere
    found = tuple(quotes(answer, question, s.text, s.start) for s in sources)
    if any(found):
        return True, found
    return _in_several(answer, question, sources), nowhere


def _in_several(answer: str, question: str, sources: Sequence[Source]) -> bool:
    """Whether each thing of a list stands in one source or another."""
    parts = [part for part in _PARTS.split(answer) if _needle(part)]
    reads = [_Read(source.text, question) for source in sources]
    return len(parts) > 1 and all(any(read.place(part) for read in reads) for part in parts)


class _Read:
    """A text that was read for a question: its words and its sentences."""

    def __init__(self, text: str, question: str) -> None:
        self.text, self.tokens = text, _tokens(text)
        self.words, self.starts = [t.word for t in self.tokens], [t.start for t in self.tokens]
        self.edges = _edges(text)
        self.asked = {t.word for t in _tokens(question)} - _LITTLE

    def place(self, answer: str) -> tuple[int, int] | None:
        """Characters [start, end) of the best place of one thing."""
        needle = _needle(answer)
        if not needle:
            return None
        size = len(needle)
        found = [n for n, word in enumerate(self.words) if word == needle[0] and self.words[n : n + size] == needle]
        if found:
            spans = [(self.starts[n], max(t.end for t in self.tokens[n : n + size])) for n in found]
            return max(spans, key=lambda span: (self._said(span), -span[0]))
        wanted = {word for word in needle if word not in _LITTLE}
        return self._in_one_sentence(wanted - self.asked or wanted)

    def quote(self, start: int, end: int, offset: int) -> Quote:
        """These characters, with the sentences that they lie in."""
        first, last = self._around(start, end)
        return Quote(self.text[start:end], start + offset, end + offset, self.text[first:last].strip())

    def _said(self, span: tuple[int, int]) -> int:
        """How many words of the question stand in the sentence around a span."""
        first, last = (bisect_left(self.starts, edge) for edge in self._around(*span))
        return len(self.asked.intersection(self.words[first:last]))

    def _in_one_sentence(self, wanted: set[str]) -> tuple[int, int] | None:
        for start, end in pairwise(self.edges):
            sentence = self.tokens[bisect_left(self.starts, start) : bisect_left(self.starts, end)]
            held = [t for t in sentence if t.word in wanted]
            if wanted and {t.word for t in held} == wanted:
                return held[0].start, max(t.end for t in held)
        return None

    def _around(self, start: int, end: int) -> tuple[int, int]:
        """The edges of the sentences that characters [start, end) lie in."""
        return self.edges[bisect_right(self.edges, start) - 1], self.edges[bisect_left(self.edges, end)]


def _needle(answer: str) -> list[str]:
    """The answer's words, without little ones around them."""
    words = [token.word for token in _tokens(answer)]
    while words and words[0] in _LITTLE:
        del words[0]
    while words and words[-1] in _LITTLE:
        del words[-1]
    return words


def _edges(text: str) -> list[int]:
    """Where sentences begin, and where the text ends."""
    cuts = [m.end() for m in _ENDS.finditer(text) if not _SHORTENED.search(text[max(0, m.start() - 6) : m.start() + 1])]
    return sorted({0, *cuts, len(text)})


def _tokens(text: str) -> list[_Token]:
    """The words of a text; those of a date stand as year, month, day, each at the whole date."""
    bare = _GROUPED.sub(lambda m: m[0].replace(",", "\0"), text)  # of the same length
    raw = [_Token(_word(m[0]), m.start(), m.end()) for m in _WORD.finditer(bare)]
    return list(_dated(raw, text))


def _word(written: str) -> str:
    plain = unicodedata.normalize("NFKD", written.replace("\0", "")).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    if match := _ORDINAL.fullmatch(plain):
        return match[1]
    if plain.isascii() and plain.isdigit():
        return plain.lstrip("0") or "0"
    return _NUMBERS.get(plain, plain)


def _dated(tokens: Sequence[_Token], text: str) -> Iterator[_Token]:
    at = 0
    while at < len(tokens):
        size, date = _date(tokens[at : at + 4], text)
        for word in date:
            yield _Token(word, tokens[at].start, tokens[at + size - 1].end)
        if not date:
            yield tokens[at]
        at += max(size, 1)


def _date(tokens: Sequence[_Token], text: str) -> tuple[int, list[str]]:
    """How many tokens a date takes that begins here, and year, month and day as they are compared; 0 for none."""
    three = tokens[:3]
    words = [t.word for t in three]
    if len(three) == 3 and _is_year(words[0]) and {text[a.end : b.start] for a, b in pairwise(three)} == {"-"}:
        year, month, day = words
        if _is_day(month) and int(month) <= len(_MONTHS) and _is_day(day):
            return 3, [year, _MONTHS[int(month) - 1], day]
        return 0, []
    if len(tokens) > 1 and _is_day(words[0]):  # 12 March 1821, 12th of March
        of = 1 + (tokens[1].word == "of")
        if len(tokens) > of and tokens[of].word in _MONTH:
            month = _MONTHS[_MONTH[tokens[of].word] - 1]
            if len(tokens) > of + 1 and _is_year(tokens[of + 1].word):
                return of + 2, [tokens[of + 1].word, month, words[0]]
            return of + 1, [month, words[0]]
    if words and words[0] in _MONTH and len(words) > 1 and text[three[0].start].isupper():
        month = _MONTHS[_MONTH[words[0]] - 1]
        if _is_year(words[1]):
            return 2, [words[1], month]
        if _is_day(words[1]):
            whole = len(words) > 2 and _is_year(words[2])
            return (3, [words[2], month, words[1]]) if whole else (2, [month, words[1]])
    return 0, []


def _is_day(word: str) -> bool:
    return len(word) <= 2 and word.isascii() and word.isdigit() and 1 <= int(word) <= 31


def _is_year(word: str) -> bool:
    return len(word) in (3, 4) and word.isascii() and word.isdigit()
