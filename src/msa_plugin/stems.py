"""Words as they are counted: the stems of a text, and where in a text a question's words stand.

Words are stemmed by Snowball's English rules, without English stop words, as bm25s splits them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"\w+")


class Stems:
    """Texts to the stems of their words, in their order, without stop words."""

    def __init__(self) -> None:
        """Load them."""
        self.library, self._stemmer = _libraries()

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """A row of stems for each text."""
        rows, stems = self.numbered(texts)
        return [[stems[number] for number in row] for row in rows]

    def numbered(self, texts: Sequence[str]) -> tuple[list[list[int]], list[str]]:
        """The same as numbers, and the stem of each number."""
        rows, numbers = self.library.tokenize(
            list(texts), stopwords="en", stemmer=self._stemmer, return_ids=True, show_progress=False
        )
        return rows, sorted(numbers, key=numbers.__getitem__)


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


def _libraries() -> tuple[Any, Any]:
    """The module bm25s and an English stemmer; the only place that imports them, and only for who counts words."""
    import bm25s
    import Stemmer

    return bm25s, Stemmer.Stemmer("english")
