"""Why a document ranks where it does: plain data, exported by `types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msa_plugin.display import views


class ChunkScore(NamedTuple):
    """Characters [start, end) of a document's text, and how well their routing key fits the question.

    A chunk of the title alone has no characters.
    """

    start: int
    end: int
    score: float


class NamedBy(NamedTuple):
    """Where a document's title stands, and what that added: in another document, or (id None) in the question.

    With `shared` it is any name that the other document has in common with it.
    """

    id: str | None
    title: str
    added: float
    shared: bool = False


@dataclass(frozen=True)
class Explanation:
    """What brought a document to its place, or did not.

    `score` is the sum of `signals`: `keys` (routing), and `words` and `names` where these added to it. `place` is its
    rank among it and all that were `considered`: those that fit best by keys, those with most of the question's words,
    and those that are named. `places` are its ranks among them by each signal alone, `best` is the first one's score.
    `layers` are the parts of the best chunk's score; `words` what each word of the question added, `named` what each
    mention of its title, and each name that it shares, did. `relevance` as `Hit.relevance`.
    """

    question: str
    id: str
    title: str
    text: str
    score: float
    signals: Mapping[str, float]
    layers: Mapping[int, float]
    chunks: tuple[ChunkScore, ...]
    words: Mapping[str, float]
    named: tuple[NamedBy, ...]
    place: int
    places: Mapping[str, int]
    considered: int
    best: float
    relevance: float | None = None
    namespace: str = ""

    def _repr_html_(self) -> str:
        return views.explanation(self)
