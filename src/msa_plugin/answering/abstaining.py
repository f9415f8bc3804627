"""Saying that the memory does not say it: nothing that was found is relevant, or the reader finds no answer in it.

The reader decides together with relevance: alone, a small one gives up on passages that hold the answer in plain words.

Nothing is read or decoded for a question of the first kind. A reader that was asked to say when the answer is not there
says `prompts.ABSENT`; text that may turn out to be that sentence is held back until it is decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from msa_plugin import prompts
from msa_plugin.answering.answers import AnswerJob, Events, stages
from msa_plugin.answering.grounding import grounded
from msa_plugin.answering.reading import Prefill, Reader
from msa_plugin.config import RelevanceConfig
from msa_plugin.events import Abstained
from msa_plugin.types import Answer, Trace

_SURE = 0.98  # from here on a reader may not give up: held-out rows where it rightly did had less
_UNSURE = 0.002  # less counts as this little


def parted(asked: Sequence[AnswerJob], least: float) -> tuple[list[int], list[int]]:
    """Rows of questions to read for, and of those that found nothing that is known to be at least so relevant."""
    rows: tuple[list[int], list[int]] = [], []
    for row, one in enumerate(asked):
        rows[one.gathered.relevance is not None and one.gathered.relevance < least].append(row)
    return rows


def declined(
    asked: Sequence[AnswerJob], rows: Sequence[int], mode: str, abilities: tuple[str, ...], beside: Mapping[str, float]
) -> Events:
    """The answers of `rows`, of which nothing is read."""
    for row in rows:
        gathered = asked[row].gathered
        trace = Trace(
            mode=mode,
            abilities=abilities,
            rounds=tuple(gathered.rounds),
            seconds=stages(asked[row]),
            prompt_tokens=0,
            context_tokens=0,
            new_tokens=0,
            finish="abstained",
            interleave="scores",
            beside=dict(beside),
            relevance=gathered.relevance,
        )
        yield row, Abstained("relevance")
        yield row, prompts.UNKNOWN
        yield row, Answer(prompts.UNKNOWN, (), trace, abstained=True)


def told(events: Events, asked: Sequence[AnswerJob], *, may_abstain: bool) -> Events:
    """What `answering` yields of `asked`: answers say where their words stand, or that nothing was found.

    `may_abstain` is whether the reader was asked to say when the answer is not there.
    """
    held = [_Held(may_abstain) for _ in asked]
    with closing(events):
        for row, event in events:
            if isinstance(event, str):
                if piece := held[row].push(event):
                    yield row, piece
            elif isinstance(event, Answer) and may_abstain and prompts.says_absent(event.text):
                trace = replace(event.trace, finish="abstained")
                yield row, Abstained("reader")
                yield row, prompts.UNKNOWN
                yield row, replace(event, text=prompts.UNKNOWN, sources=(), trace=trace, abstained=True)
            elif isinstance(event, Answer):
                if rest := held[row].rest():
                    yield row, rest
                yield row, _grounded(event, asked[row].gathered.question)
            else:
                yield row, event


def prefilled(reader: Reader, asked: Sequence[AnswerJob], trust: RelevanceConfig | None) -> Prefill:
    """Prefill what is read for `asked`; a trained reader's `prompts.ABSENT` is less likely as that is more relevant."""
    prefill = reader.prefill([one.gathered.question for one in asked], [one.excerpts for one in asked])
    if trust is None or not reader.trained or not (trust.absent_weight or trust.absent_bias):
        return prefill
    # In whatever case it is written, or else it would only be written otherwise.
    forms = (form(prompts.ABSENT) for form in (str, str.lower, str.upper, " {}".format))
    absent, logits = sorted({reader.backbone.tokenize(form)[0] for form in forms}), prefill.logits.clone()
    for row, one in enumerate(asked):
        if (known := one.gathered.relevance) is not None:
            share = max(known, _UNSURE)
            weight = math.inf if share >= _SURE else math.log(share / (1 - share))
            logits[row, absent] -= trust.absent_bias + trust.absent_weight * weight
    return replace(prefill, logits=logits)


def among(rows: Sequence[int], events: Events) -> Events:
    """Events of some questions, under the rows that these have among all."""
    with closing(events):
        for row, event in events:
            yield rows[row], event


def _grounded(answer: Answer, question: str) -> Answer:
    known, quotes = grounded(answer.text, question, answer.sources)
    sources = tuple(replace(s, quotes=q) if q else s for s, q in zip(answer.sources, quotes, strict=True))
    return replace(answer, sources=sources, grounded=known)


class _Held:
    """Pieces of one row that may be the beginning of `prompts.ABSENT`."""

    def __init__(self, holds: bool) -> None:
        self._waiting: str | None = "" if holds else None

    def push(self, piece: str) -> str:
        """One more piece; returns what is certain not to be it."""
        if self._waiting is None:
            return piece
        self._waiting += piece
        if prompts.says_absent(self._waiting, so_far=True):
            return ""
        return self.rest()

    def rest(self) -> str:
        """What was held back; from here on nothing is."""
        waiting, self._waiting = self._waiting or "", None
        return waiting
