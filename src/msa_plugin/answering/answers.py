"""From a prefill to answers: decode every row, and say what each was read from and what it cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from msa_plugin.answering.copying import Copied, Spellings, may_copy
from msa_plugin.answering.decoding import TextStream, decode
from msa_plugin.answering.grounding import grounded
from msa_plugin.answering.reading import Excerpt, Prefill
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.turns import Turns
from msa_plugin.bank.documents import StoredDocument
from msa_plugin.bank.handle import Selected
from msa_plugin.config import GenerationConfig
from msa_plugin.events import DocumentsChosen, DocumentsFetched, RetrievalEnded, RetrievalEvent
from msa_plugin.events import Events as Events
from msa_plugin.retrieval.interleave import Gathered
from msa_plugin.retrieval.recency import SHARE
from msa_plugin.types import Answer, Passage, Source, Trace

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class AnswerJob:
    """A question on its way: what was gathered for it, the excerpts that will be read, seconds outside any round."""

    gathered: Gathered
    excerpts: list[Excerpt]
    stored: dict[int, StoredDocument]
    seconds: Mapping[str, float] = field(default_factory=dict)


def answering(
    backbone: Backbone,
    asked: Sequence[AnswerJob],
    prefill: Prefill,
    generation: GenerationConfig,
    mode: str,
    abilities: tuple[str, ...],
    beside: Mapping[str, float] = MappingProxyType({}),
) -> Events:
    """Decode after `prefill`: yields (row, text piece) as text becomes certain and (row, Answer) at the end.

    Those that are to be in words of their passages are checked before any of their text is given.
    """
    seconds, began = 0.0, time.perf_counter()
    if prefill.spellings is None:
        streams = [TextStream(backbone, generation.stop, generation.repetition) for _ in asked]
        decoding = decode(backbone, prefill.state, prefill.logits, prefill.positions, streams, generation)
    else:
        streams = written_from_passages(backbone, asked, prefill, generation, prefill.spellings)
        decoding = ((row, stream.text) for row, stream in enumerate(streams) if stream.text)
    for piece in decoding:
        seconds += time.perf_counter() - began
        yield piece
        began = time.perf_counter()  # what the caller did with the piece is not decoding
    seconds += time.perf_counter() - began
    for row, (one, stream) in enumerate(zip(asked, streams, strict=True)):
        trace = Trace(
            mode=mode,
            abilities=abilities,
            rounds=tuple(one.gathered.rounds),
            seconds=stages(one) | {**prefill.seconds, "decode": seconds},
            prompt_tokens=prefill.prompt_tokens[row],
            context_tokens=prefill.context_tokens[row],
            new_tokens=stream.tokens,
            finish=stream.finish,
            head_tokens=prefill.head_tokens,
            interleave="scores" if one.gathered.rounds else "",
            beside=dict(beside),
            relevance=one.gathered.relevance,
        )
        yield row, Answer(stream.text, _sources(one), trace)


def written_from_passages(
    backbone: Backbone,
    asked: Sequence[AnswerJob],
    prefill: Prefill,
    generation: GenerationConfig,
    spellings: Spellings,
) -> list[TextStream]:
    """Decode every row to its end, and once more in words of its passages where it said what stands in none.

    The prompt is not read again. The second text counts where it stands in a passage.
    """
    state, sources = prefill.state, [_sources(one) for one in asked]
    assert state.row_mask is not None
    prompt = state.row_mask.shape[1]

    def written(copies: Sequence[Copied | None] = ()) -> list[TextStream]:
        streams = [TextStream(backbone, generation.stop, generation.repetition) for _ in asked]
        for _ in decode(backbone, state, prefill.logits, prefill.positions, streams, generation, copies):
            pass
        return streams

    free = written()
    copies = [
        Copied(spellings, [source.text for source in read])
        if may_copy(stream.text, one.gathered.question, read)
        else None
        for one, stream, read in zip(asked, free, sources, strict=True)
    ]
    if not any(copies):
        return free
    state.rewind(prompt)
    again = written(copies)
    return [
        second if copy is not None and grounded(second.text, one.gathered.question, read)[0] else first
        for one, first, second, copy, read in zip(asked, free, again, copies, sources, strict=True)
    ]


def portions(items: Sequence[_Item], size: int) -> Iterator[tuple[int, Sequence[_Item]]]:
    """The items, at most `size` together, each portion with the index of its first."""
    return ((first, items[first : first + size]) for first in range(0, len(items), size))


def in_turn(each: Iterable[tuple[int, Events]], turns: Turns, timeout: float | None) -> Events:
    """The events of each portion, worked out when its turn comes; rows count from the portion's index.

    While a caller has an event, others may go on. An answer's seconds add up to all that was spent until then, here and
    waiting (`queue`); what no stage has taken is `other`. Raises BusyError.
    """
    spent, began = 0.0, time.perf_counter()
    for first, events in each:
        queue = spent  # with those of this call that were answered before
        with turns.turn(timeout) as turn, closing(events):
            while True:
                queue += turn.take()
                step = next(events, None)
                spent, began = spent + time.perf_counter() - began, time.perf_counter()
                if step is None:
                    break
                row, event = step
                if isinstance(event, Answer):
                    event = _with_seconds(event, {"queue": queue}, spent)
                turn.lend()
                yield first + row, event
                began = time.perf_counter()  # what the caller did with the event is not counted


def completed(events: Events, before: float, selection: Selected | None = None) -> Events:
    """The same events; an answer's trace counts the seconds `before` them too, and names the shards that were lost."""
    with closing(events):
        for row, event in events:
            if isinstance(event, Answer):
                event = _with_seconds(event, {}, before + sum(event.trace.seconds.values()))
                event = event if selection is None else _of_selection(event, selection)
            yield row, event


def _of_selection(answer: Answer, selection: Selected) -> Answer:
    aged = selection.asof.half_life is not None and answer.trace.rounds
    beside = {**answer.trace.beside, **({"recency": SHARE} if aged else {})}
    return replace(answer, trace=replace(answer.trace, beside=beside, missed_shards=selection.missed))


def _with_seconds(answer: Answer, stages: Mapping[str, float], total: float) -> Answer:
    """The answer with more `stages`, and with what these and its own lack of `total` as part of `other`."""
    seconds = {**stages, **answer.trace.seconds}
    rest = max(0.0, total - sum(seconds.values()))
    seconds["other"] = seconds.get("other", 0.0) + rest
    return replace(answer, trace=replace(answer.trace, seconds=seconds))


def found_at_once(asked: Sequence[AnswerJob]) -> Iterator[tuple[int, RetrievalEvent]]:
    """What a forward that routed and read in one go found."""
    for row, one in enumerate(asked):
        [only] = one.gathered.rounds
        yield row, DocumentsChosen(1, only.selected, only.scores)
        yield row, RetrievalEnded(1, "scores")


def fetched(asked: Sequence[AnswerJob]) -> Iterator[tuple[int, RetrievalEvent]]:
    """What each question is about to be answered from, by the round that found it."""
    for row, one in enumerate(asked):
        sources = _sources(one)
        for number in sorted({source.round for source in sources}):
            yield row, DocumentsFetched(number, tuple(s for s in sources if s.round == number))


def stages(asked: AnswerJob) -> dict[str, float]:
    """Seconds by stage, over all rounds and what was done outside them."""
    stages: dict[str, float] = {"encode": 0.0, "route": 0.0}
    for seconds in (*(r.seconds for r in asked.gathered.rounds), asked.seconds):
        for stage, value in seconds.items():
            stages[stage] = stages.get(stage, 0.0) + value
    return stages


def _sources(asked: AnswerJob) -> tuple[Source, ...]:
    """What was read, in the order it was found: by round and, within one, best first; so are a document's passages."""
    read: dict[int, list[Passage]] = {}
    for excerpt in asked.excerpts:
        read.setdefault(excerpt.ordinal, []).extend([excerpt.passage] if excerpt.passage else [])
    sources = []
    for found in asked.gathered.found:
        ordinal, score = found.ranked.ordinal, found.ranked.score
        passages = sorted(read.get(ordinal, ()), key=lambda passage: -passage.score)
        each = [source(asked.stored[ordinal], p, score, found.round) for p in passages]
        sources += [replace(one, relevance=found.relevance) for one in each]
    return tuple(sources)


def source(document: StoredDocument, passage: Passage | None, score: float, round: int) -> Source:
    """A passage that is read, found in `round` with its document's `score`."""
    assert passage is not None
    p, d = passage, document
    place = (p.start, p.end, p.heading)
    return Source(d.id, score, round, p.text, d.title, d.metadata, *place, validity=d.validity)
