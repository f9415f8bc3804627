"""Titles of documents as names that questions and other documents use: "Kestrel Mill" in a text leads to that document.

Following names is how a chain's next document is found where what links them is a name (compare the hyperlinks of
arXiv 1911.10470). What it is worth is measured in docs/experiments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msa_plugin.bank.terms import LONGEST, hashed_runs, lowered, name_of, words_of
from msa_plugin.bank.words import WordPart, WordTable

# A title of nothing but these is found in questions only where upper and lower case agree.
_STOP = frozenset(
    """a an the of in on at to by for from with as and or not no is are was were be been do does did has have had can
    will would i it he she they we you me him her them us his its their our my your who what when where which why how
    this that these those there here all one first last name up out so if then than""".split()  # noqa: SIM905
)

Named = dict[int, str]  # documents in the order in which a text names them, and the name, in lower case
# Names of visible documents in a text, and who is called so: by the word that they begin at, and how many they have.
Runs = dict[tuple[int, int], list[int]]


class TextNames:
    """Which runs of a text's words name documents. `any_case` is for questions: people type names in lower case."""

    def __init__(self, text: str, *, any_case: bool) -> None:
        """Split and hash it."""
        self.words, self._any_case = words_of(text), any_case
        self._lowered = [lowered(word) for word in self.words]
        runs = hashed_runs(self._lowered)
        self._hashes, self._run_of = np.unique(runs, return_inverse=True)
        self._run_of = self._run_of.reshape(runs.shape)

    def runs(self, parts: Sequence[WordPart]) -> Runs:
        """Runs of words that are names of documents that count, and these documents, ascending."""
        found: dict[int, list[tuple[str, int]]] = {}
        for part in parts:
            for position, place, name in part.table.called(self._hashes):
                if part.allowed is None or part.allowed[position]:
                    found.setdefault(place, []).append((name, int(part.ordinals[position])))
        named: Runs = {}
        for size, at in np.argwhere(np.isin(self._run_of, list(found))).tolist():
            spelled, same = self.words[at : at + size + 1], self._lowered[at : at + size + 1]
            if len(same) <= size:
                continue  # the end of the text
            loose = self._any_case and not _STOP.issuperset(same)
            name, exact = " ".join(same), " ".join(spelled)
            called = [
                n for title, n in found[self._run_of[size, at]] if title == exact or (loose and lowered(title) == name)
            ]
            if called:
                named[at, size + 1] = sorted(called)
        return named

    def chosen(self, runs: Runs) -> Named:
        """The longest name at every word, and on after it: in "New York City" neither New York nor York is named."""
        found: Named = {}
        at = 0
        while at < len(self.words):
            for size in range(LONGEST, 0, -1):
                if (at, size) in runs:
                    name = " ".join(self._lowered[at : at + size])
                    found.update(dict.fromkeys(runs[at, size], name))
                    at += size - 1
                    break
            at += 1
        return found


class TitleIndex:
    """Which of some documents a text names by their titles."""

    def __init__(self, titles: Sequence[str]) -> None:
        """With documents 0, 1, ..., of `titles`."""
        self._names = [lowered(name_of(title)) for title in titles]
        table = WordTable.of((title, "") for title in titles)
        self._parts = [WordPart(table, np.arange(len(titles), dtype=np.int64), None)]

    def in_question(self, text: str) -> list[int]:
        """Documents that a question names, in order; people type names in lower case too."""
        return list(self._named(text, any_case=True))

    def in_document(self, text: str, own: int | None = None) -> list[int]:
        """Documents that a text names, as titles spell them, none of them called as the document `own` is."""
        mine = "" if own is None else self._names[own]
        return [number for number, name in self._named(text, any_case=False).items() if name != mine]

    def _named(self, text: str, *, any_case: bool) -> Named:
        names = TextNames(text, any_case=any_case)
        return names.chosen(names.runs(self._parts))
