"""Titles of documents as names that questions and other documents use: "Kestrel Mill" in a text leads to that document.

Following names is how a chain's next document is found where what links them is a name (compare the hyperlinks of
arXiv 1911.10470). What it is worth is measured in docs/experiments.md.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

_WORD = re.compile(r"\w+")
_ASIDE = re.compile(r"\s*\([^()]*\)")  # "Port Blair (city)" is called Port Blair
_LONGEST = 10  # words; longer titles are no names
# A title of nothing but these is found in questions only where upper and lower case agree.
_STOP = frozenset(
    """a an the of in on at to by for from with as and or not no is are was were be been do does did has have had can
    will would i it he she they we you me him her them us his its their our my your who what when where which why how
    this that these those there here all one first last name up out so if then than""".split()  # noqa: SIM905
)


class TitleIndex:
    """Which of a list of documents a text names by their titles."""

    def __init__(self, titles: Sequence[str]) -> None:
        """Documents without a title, or with a very long one, are never named."""
        self._named: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._own: list[str] = []
        for place, title in enumerate(titles):
            words = _WORD.findall(_ASIDE.sub("", title)) or _WORD.findall(title)
            name = " ".join(words)
            self._own.append(name.lower())
            if 0 < len(words) <= _LONGEST:
                self._named[name.lower()].append((place, name))

    def in_question(self, text: str) -> list[int]:
        """Places of documents that a question names, in order; people type names in lower case too."""
        return self._find(text, any_case=True)

    def in_document(self, text: str, own: int | None = None) -> list[int]:
        """Places of documents that a document's text names, as titles spell them, none of them called as `own` is."""
        mine = None if own is None else self._own[own]
        return [place for place in self._find(text, any_case=False) if self._own[place] != mine]

    def _find(self, text: str, *, any_case: bool) -> list[int]:
        """The longest name at every word, and on after it: in "New York City" neither New York nor York is named."""
        words = _WORD.findall(text)
        lowered = [w.lower() for w in words]
        found: dict[int, None] = {}
        at = 0
        while at < len(words):
            for size in range(min(_LONGEST, len(words) - at), 0, -1):
                same = self._named.get(" ".join(lowered[at : at + size]))
                if same is None:
                    continue
                spelled = " ".join(words[at : at + size])
                loose = any_case and not _STOP.issuperset(lowered[at : at + size])
                if places := [place for place, name in same if loose or name == spelled]:
                    found.update(dict.fromkeys(places))
                    at += size - 1
                    break
            at += 1
        return list(found)
