"""Words as they are counted: the stems of a text, and where in a text a question's words stand.

Words are runs of at least two letters, digits or underscores in small letters, less Lucene's English stop words,
stemmed by Snowball's English rules. That is how bm25s splits texts (a test compares them); loading it takes longer
than a question, since it loads a compiler where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"\w+")
_COUNTED = re.compile(r"\b\w\w+\b")
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be but by for if in into is it no not of on or such that the their then there these they
        this to was will with""",
    )
)


class Stems:
    """Texts to the stems of their words, in their order, without stop words."""

    def __init__(self) -> None:
        """Load the rules."""
        self._stemmer = _stemmer()

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """A row of stems for each text."""
        rows, stems = self.numbered(texts)
        return [[stems[number] for number in row] for row in rows]

    def numbered(self, texts: Sequence[str]) -> tuple[list[list[int]], list[str]]:
        """The same as numbers, and the stem of each number."""
        words: dict[str, int] = {}
        spelled = [
            [words.setdefault(word, len(words)) for word in _COUNTED.findall(text.lower()) if word not in _STOP_WORDS]
            for text in texts
        ]
        stems: dict[str, int] = {}
        forms = [stems.setdefault(stem, len(stems)) for stem in self._stemmer.stemWords(list(words))]
        return [[forms[number] for number in row] for row in spelled], list(stems)


@lru_cache(maxsize=1)
def stems() -> Stems:
    """This process's."""
    return Stems()


def marked(text: str, question: str, shift: int = 0) -> list[tuple[int, int]]:
    """Where in `text` words of the question stand, stop words left out, in whatever form (characters + `shift`)."""
    asked = set(stems()([question])[0])
    words = list(_WORD.finditer(text))
    found = stems()([match[0] for match in words])
    return [
        (match.start() + shift, match.end() + shift)
        for match, forms in zip(words, found, strict=True)
        if asked.intersection(forms)
    ]


def _stemmer() -> Any:
    """English rules; the only place that imports PyStemmer, and only for who counts words."""
    import Stemmer

    return Stemmer.Stemmer("english")
