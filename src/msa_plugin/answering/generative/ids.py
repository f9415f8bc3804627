"""Which numbers a question may name, and the documents behind them.

Within the range of numbers that a model was trained on, every document that may be read can be named, whatever routing
found. Beyond it numbers repeat, and a question can name what it was routed to: short numbers that are local to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from msa_plugin.answering.answers import source
from msa_plugin.answering.excerpts import Excerpts
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.encoding.numbering import FIRST_ORDINAL, Numbering
from msa_plugin.retrieval.ranking import Ranked
from msa_plugin.types import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

IdMode = Literal["global", "local"]


@dataclass(frozen=True)
class IdCandidates:
    """The numbers that may be written next, ascending, and the ordinal that each stands for (None: number + 1)."""

    numbers: NDArray[np.int64]
    ordinals: dict[int, int] | None = None

    def ordinal(self, number: int) -> int:
        """The document that `number` names."""
        return number + FIRST_ORDINAL if self.ordinals is None else self.ordinals[number]


class Ids:
    """Candidates for the questions of one call."""

    def __init__(self, numbering: Numbering, selection: Selected) -> None:
        """`selection` is what may be read at all."""
        self._numbering = numbering
        live = selection.ordinals().numpy().astype(np.int64)
        last = int(live[-1]) if len(live) else 0
        self.mode: IdMode = "global" if numbering.fits(last) else "local"
        self._all = IdCandidates(live - FIRST_ORDINAL) if self.mode == "global" else None

    def candidates(self, routed: Sequence[int], known: dict[int, int]) -> IdCandidates:
        """What may be named after routing found the ordinals `routed`, best first.

        `known` are the ordinals of documents that the question has fetched, with their numbers, which they keep. Of
        two documents with one number the better routed has it.
        """
        if self._all is not None:
            return self._all
        ordinals = {number: ordinal for ordinal, number in known.items()}
        for ordinal in routed:
            ordinals.setdefault(self._numbering.number(ordinal), ordinal)
        return IdCandidates(np.array(sorted(ordinals), dtype=np.int64), ordinals)


class Library:
    """The documents of one call: which may be named, and their text, cut to a budget."""

    def __init__(self, bank: BankHandle, ids: Ids, excerpts: Excerpts) -> None:
        """`excerpts` fit ranked documents to a number of tokens."""
        self.bank, self.ids, self._excerpts = bank, ids, excerpts

    def name(self, ordinals: Sequence[int]) -> list[str]:
        """The user's ids."""
        return [d.id for d in self.bank.documents(ordinals)]

    def fetch(self, ranked: Sequence[Ranked], tokens: int, round: int) -> tuple[list[Source], dict[int, str], int]:
        """Sources within a budget of `tokens`, best first; what is read of each ordinal; how many tokens that has."""
        excerpts = self._excerpts.cut(ranked, tokens)
        documents = {d.ordinal: d for d in self._excerpts.documents(ranked)}
        scores = {r.ordinal: r.score for r in ranked}
        sources = [source(documents[e.ordinal], e.passage, scores[e.ordinal], round) for e in excerpts]
        return sources, {e.ordinal: e.text for e in excerpts}, sum(e.stop - e.start for e in excerpts)
