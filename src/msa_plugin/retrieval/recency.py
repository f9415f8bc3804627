"""Recency beside routing keys, words and names: of what fits, the newer ranks higher. Off unless asked for.

A document that is as old as `half_life` gains half of what one of now does, which is a share of the question's best
score. So what is merely new never passes what fits much better. How old a document is, its bank says
(`DocumentRows.dates`), counted back from the present, or from the moment that `at=` asks about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from msa_plugin import dates
from msa_plugin.bank.handle import BankHandle
from msa_plugin.retrieval.ranking import Ranked, best_first
from msa_plugin.retrieval.relevance import compared
from msa_plugin.types import Asof

SHARE = 0.15  # of the best score, for what is of this moment; see docs/experiments/words-and-names.md


def with_recency(bank: BankHandle, ranked: Sequence[list[Ranked]], k: int, asof: Asof) -> list[list[Ranked]]:
    """Each row, best first: the best `k` by recency too, and those that relevance compares these with.

    Documents of which nobody knows how old they are gain nothing. Ties go to the lower ordinal.
    """
    assert asof.half_life is not None
    known = sorted({r.ordinal for row in ranked for r in row})
    now = datetime.fromisoformat(asof.at or dates.clock())
    each = {o: _freshness(since, now, asof.half_life) for o, since in zip(known, bank.dates(known), strict=True)}
    rows = []
    for row in ranked:
        best = max((r.score for r in row), default=0.0)
        gains = [SHARE * max(best, 0.0) * each[r.ordinal] for r in row]
        raised = best_first(replace(r, score=r.score + g, recency=g) for r, g in zip(row, gains, strict=True))
        first = compared(row)
        rows.append([*raised[:k], *(r for r in raised[k:] if r.ordinal in first)])
    return rows


def _freshness(since: str | None, now: datetime, half_life: float) -> float:
    """1 for what is of now (or later: a clock may go back), 1/2 after `half_life` days; 0 for what has no date."""
    if since is None:
        return 0.0
    age = max(now - datetime.fromisoformat(since), timedelta())
    return float(0.5 ** min(age / timedelta(days=1) / half_life, 1000.0))
