"""Words as they are counted: the stems of a text, and where in a text a question's words stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r"\w+")


class Stems:
    """Texts to the stems of their words, in their order, without English stop words."""

    def __init__(self) -> None:
        """Load them."""
        self.library, self._stemmer = _libraries()

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """A row of stems for each text."""
        rows: list[list[str]] = self.library.tokenize(
            list(texts), stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return rows


def marked(text: str, question: str, shift: int = 0) -> list[tuple[int, int]]:
    """Where in `text` words of the question stand, stop words left out, in whatever form (characters + `shift`)."""
    stems = Stems()
    asked = set(stems([question])[0])
    words = list(_WORD.finditer(text))
    found = stems([match[0] for match in words])
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
