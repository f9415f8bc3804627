"""Titles of documents as names that questions and other documents use: "Kestrel Mill" in a text leads to that document.

Following names is how a chain's next document is found where what links them is a name (compare the hyperlinks of
arXiv 1911.10470). What it is worth is measured in docs/experiments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Visible = Callable[[list[int]], list[int]]  # those of some documents that a question may see

_WORD = re.compile(r"\w+")
_ASIDE = re.compile(r"\s*\([^()]*\)")  # "Port Blair (city)" is called Port Blair
_LONGEST = 10  # words; longer titles are no names
# A title of nothing but these is found in questions only where upper and lower case agree.
_STOP = frozenset(
    """a an the of in on at to by for from with as and or not no is are was were be been do does did has have had can
    will would i it he she they we you me him her them us his its their our my your who what when where which why how
    this that these those there here all one first last name up out so if then than""".split()  # noqa: SIM905
)


def _all(documents: list[int]) -> list[int]:
    return documents


class TitleIndex:
    """Which documents a text names by their titles; documents are numbers, and may be added at any time."""

    def __init__(self, titles: Sequence[str] = ()) -> None:
        """With documents 0, 1, ..., of `titles`."""
        self._named: dict[str, list[tuple[int, str]]] = {}
        self._own: dict[int, str] = {}
        self.add(range(len(titles)), titles)

    def add(self, documents: Sequence[int], titles: Sequence[str]) -> None:
        """Take in documents with their titles. Those without a title, or with a very long one, are never named."""
        for document, title in zip(documents, titles, strict=True):
            words = _WORD.findall(_ASIDE.sub("", title)) or _WORD.findall(title)
            name = " ".join(words)
            self._own[document] = name.lower()
            if 0 < len(words) <= _LONGEST:
                self._named.setdefault(name.lower(), []).append((document, name))

    def in_question(self, text: str, visible: Visible = _all) -> list[int]:
        """Documents among the visible that a question names, in order; people type names in lower case too."""
        return self._find(text, visible, any_case=True)

    def in_document(self, text: str, own: int | None = None, visible: Visible = _all) -> list[int]:
        """Documents among the visible that a text names, as titles spell them, none of them called as `own` is."""
        mine = None if own is None else self._own.get(own)
        return [number for number in self._find(text, visible, any_case=False) if self._own[number] != mine]

    def _find(self, text: str, visible: Visible, *, any_case: bool) -> list[int]:
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
                if named := visible([number for number, name in same if loose or name == spelled]):
                    found.update(dict.fromkeys(named))
                    at += size - 1
                    break
            at += 1
        return list(found)
