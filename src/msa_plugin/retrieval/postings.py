"""What a question's words say of documents, by postings: BM25, and how many of the words are there at all.

BM25 is that of `bm25.WordIndex` for the texts of a selection alone. Its library puts a corpus's statistics into the
index, so that each change and each filter would take a new one; here they are counted when a question is asked. That
has two steps, because a selection may lie in several processes: what each part counts is added up, and each then
scores its documents by the sums.

A word that stands in a document gives its rarity times BM25's share for how often, and `PRESENT` of its rarity besides:
an answer has every word of its question rather than one of them often. Words that only ask do not give that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from msa_plugin.bank.terms import hashed
from msa_plugin.bank.words import Numbers, WordPart
from msa_plugin.retrieval.bm25 import K1, B, Scores
from msa_plugin.stems import stems

PRESENT = 0.3  # of a word's rarity, for being there; how often it is there gives less than one rarity
_ASKING = (
    "who whom whose what when where which why how many much do does did done has have had can could would should shall "
    "may might must i me my you your we us our he him his she her them am were been about from than so also please tell"
)

_Posted = tuple[NDArray[Any], NDArray[Any]]  # positions and counts of one word in one part


class Counts(NamedTuple):
    """What BM25 needs to know of a selection: its documents, their words, and how many have each of a question's."""

    documents: int
    words: int
    having: tuple[int, ...]

    @classmethod
    def summed(cls, parts: Iterable[Counts]) -> Counts:
        """Of a selection in several parts."""
        found = list(parts)
        having = tuple(map(sum, zip(*(part.having for part in found), strict=True)))
        return cls(sum(part.documents for part in found), sum(part.words for part in found), having)


class Words(NamedTuple):
    """What a question's words say: `ordinals` int64 [n], ascending, of documents that have one, and their `scores`.

    `counts` are those of the selection, by which they were scored.
    """

    ordinals: Numbers
    scores: Scores
    counts: Counts

    @classmethod
    def joined(cls, parts: Sequence[Words], counts: Counts) -> Words:
        """Of several parts without a common document, all scored by `counts`."""
        ordinals = np.concatenate([np.zeros(0, dtype=np.int64), *(part.ordinals for part in parts)])
        scores = np.concatenate([np.zeros(0, dtype=np.float32), *(part.scores for part in parts)])
        order = np.argsort(ordinals)
        return cls(ordinals[order], scores[order], counts)

    def best(self, count: int) -> list[int]:
        """Ordinals of the best; ties go to the lower one, as everywhere."""
        scores, ordinals = self.scores, self.ordinals
        if len(scores) > count:
            among = scores >= np.partition(scores, len(scores) - count)[len(scores) - count]
            scores, ordinals = scores[among], ordinals[among]
        found: list[int] = ordinals[np.lexsort((ordinals, -scores))[:count]].tolist()
        return found

    def of(self, wanted: Sequence[int]) -> Scores:
        """Scores of the documents `wanted`; 0 for those that have no word of the question."""
        if not len(self.scores):
            return np.zeros(len(wanted), dtype=np.float32)
        places = np.searchsorted(self.ordinals, wanted).clip(max=len(self.ordinals) - 1)
        return np.where(self.ordinals[places] == wanted, self.scores[places], np.float32(0))

    def shares(self, wanted: Sequence[int]) -> list[float]:
        """The same over the best score there is."""
        best = float(self.scores.max(initial=0.0))
        shares: list[float] = (torch.from_numpy(self.of(wanted)) / (best or 1.0)).tolist()
        return shares


class QuestionPostings:
    """A question's words, each once, and how often it has them."""

    def __init__(self, question: str) -> None:
        """Split by this process's tokeniser."""
        self.times = Counter(stems()([question])[0])
        self._encoded = [word.encode() for word in self.times]
        self._hashes = hashed(list(self.times))

    def rarities(self, counts: Counts, others: int = 0) -> dict[str, float]:
        """Each word's: how often the question has it, times its inverse document frequency.

        `counts` are those of a selection for this question; `others` more documents have none of the words.
        """
        having = counts.having or (0,) * len(self.times)
        return {
            word: often * _rarity(held, counts.documents + others)
            for (word, often), held in zip(self.times.items(), having, strict=True)
        }

    def over(self, parts: Sequence[WordPart]) -> Counted:
        """Look the words up in a selection's parts, in ordinal order. Raises BankCorruptError."""
        return Counted(self, parts, [self._posted(part) for part in parts])

    def _posted(self, part: WordPart) -> list[_Posted | None]:
        return [
            _allowed(part, place) if place >= 0 else None for place in part.table.places(self._encoded, self._hashes)
        ]


def _allowed(part: WordPart, place: int) -> _Posted:
    positions, counts = part.table.postings(place)
    if part.allowed is None:
        return positions, counts
    among = part.allowed[positions]
    return positions[among], counts[among]


class Counted:
    """The postings of a question's words in a selection."""

    def __init__(
        self, asked: QuestionPostings, parts: Sequence[WordPart], posted: Sequence[list[_Posted | None]]
    ) -> None:
        """`posted` [parts][words], None where a part has no such word at all."""
        self._asked, self._parts, self._posted = asked, parts, posted

    @property
    def counts(self) -> Counts:
        """Of this selection."""
        having = [0] * len(self._asked.times)
        for row in self._posted:
            for word, posted in enumerate(row):
                having[word] += 0 if posted is None else len(posted[0])
        return Counts(sum(map(_documents, self._parts)), sum(map(_words, self._parts)), tuple(having))

    def words(self, over: Counts) -> Words:
        """Scores by the counts of all parts, wherever they are.

        BM25 is Lucene's variant, by Kamphuis et al., ECIR 2020: no other document counts.
        """
        length = max(over.words / over.documents, 1e-9) if over.documents else 1.0
        rarities, asking = self._asked.rarities(over), _asking()
        found = []
        for part, row in zip(self._parts, self._posted, strict=True):
            if not any(row):
                continue
            total = np.zeros(len(part.ordinals), dtype=np.float32)
            for posted, (word, rarity) in zip(row, rarities.items(), strict=True):
                if posted is None:
                    continue
                positions, counts = posted
                relative = K1 * (1 - B + B * part.table.lengths[positions] / length)
                often = counts.astype(np.int32)
                present = 0.0 if word in asking else PRESENT
                total[positions] += rarity * (often / (relative + often) + present)
            having = np.flatnonzero(total)
            found.append(Words(part.ordinals[having], total[having], over))
        return Words.joined(found, over)


def _documents(part: WordPart) -> int:
    return len(part.ordinals) if part.allowed is None else int(np.count_nonzero(part.allowed))


def _words(part: WordPart) -> int:
    return part.table.words if part.allowed is None else int(part.table.lengths[part.allowed].sum(dtype=np.int64))


def word_scores(questions: Sequence[str], parts: Sequence[WordPart]) -> list[Words]:
    """What each question's words say of a selection in this process. Raises BankCorruptError."""
    found = [QuestionPostings(question).over(parts) for question in questions]
    return [counted.words(counted.counts) for counted in found]


def rarity(question: str, counts: Counts, others: int) -> dict[str, float]:
    """`QuestionPostings.rarities` without words that only ask: no text that answers needs them."""
    rarities = QuestionPostings(question).rarities(counts, others)
    return {word: weight for word, weight in rarities.items() if word not in _asking()}


@lru_cache(maxsize=1)
def _asking() -> frozenset[str]:
    """Stems of the words that only ask."""
    return frozenset(stems()([_ASKING])[0])


def _rarity(held: int, documents: int) -> float:
    """Inverse document frequency, as Lucene has it."""
    return math.log(1 + (documents - held + 0.5) / (held + 0.5))
