"""Which numbers a question may name, and the documents behind them.

Within the range of numbers that a model was trained on, every document that may be read can be named, whatever routing
found. Beyond it numbers repeat, and a question can name what it was routed to: short numbers that are local to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from msa_plugin.bank.handle import Selected
from msa_plugin.encoding.numbering import FIRST_ORDINAL, Numbering

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
