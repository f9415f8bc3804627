"""What a notebook shows of hits, answers, traces and explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msa_plugin.display.page import (
    MarkedSpan,
    bar,
    chunk,
    escaped,
    folded,
    inline,
    key,
    line,
    many,
    page,
    quoted,
    seconds,
    spanned,
    table,
    window,
    words,
)
from msa_plugin.stems import marked

if TYPE_CHECKING:
    from msa_plugin.explanation import Explanation
    from msa_plugin.types import Answer, Hit, Hits, Round, Source, Trace

_SHOWN = 700  # characters of a passage
_FINISHES = {
    "stop": "the model ended the answer",
    "length": "the answer was cut at its longest length",
    "repetition": "the answer was cut where it began to repeat itself",
    "abstained": "no answer was found",
}
_ROUND = ("round", "asked with", "found", "took")
_ASKED = 160  # characters of what a round asked with
_WHOLE = 6_000  # characters of a document that is explained


def hits(found: Hits) -> str:
    """Each document's best passage, with the question's words, the best chunk, and where its score is from."""
    lost = ", ".join(map(str, found.missed_shards))
    missed = f"Shards {lost} were lost: their documents are missing." if lost else ""
    if not found:
        return page(line("Nothing found.", missed))
    kind = "passage" if found[0].passage else "document"
    best = max(hit.score for hit in found)
    return page(
        line(f"<b>{inline(found.question)}</b>") if found.question else "",
        line(many(len(found), kind), _times(found.seconds), dim=True),
        line(missed),
        *(_hit(hit, place, found.question, found.chunk(hit), best) for place, hit in enumerate(found, 1)),
        line(
            "<mark>words of the question</mark>,",
            '<span class="chunk">the part of the text whose routing key fits it best</span>',
            dim=True,
        ),
    )


def _hit(hit: Hit, place: int, question: str, best_chunk: tuple[int, int] | None, best: float) -> str:
    passage = hit.passage or hit.passages[0]
    found = marked(passage.text, question)
    spans = [*words(found)]
    focus = found[0] if found else (0, 0)
    if best_chunk is not None:
        start, end = (min(max(at - passage.start, 0), len(passage.text)) for at in best_chunk)
        if start < end:
            spans.insert(0, chunk(start, end))
            focus = (start, end)
    signals = "" if hit.passage else _signals(hit.signals, best)
    return _item(
        _head(place, hit.title, passage.heading, hit.id),
        line(_scored(hit.score, hit.relevance), dim=True),
        signals,
        _clipped(passage.text, spans, focus),
    )


def answer(given: Answer) -> str:
    """The text, the passages it was read from with the words that say it, and how it came about."""
    trace, question = given.trace, given.trace.rounds[0].query if given.trace.rounds else ""
    documents, quotes = len({source.id for source in given.sources}), any(s.quotes for s in given.sources)
    grounded = "" if given.grounded is not False else "Its words do not stand in what was read."
    read = f"Read from {many(len(given.sources), 'passage')} of {many(documents, 'document')}"
    took = seconds(sum(trace.seconds.values()))
    return page(
        line(f"<b>{inline(question)}</b>") if question else "",
        f'<p class="answer">{inline(given.text)}</p>',
        line(f"{read} in {took}." if given.sources else f"Nothing was read; {took}.", grounded, dim=True),
        *(_source(source, place, question) for place, source in enumerate(given.sources, 1)),
        line("<mark>words of the question</mark>" + (", <u>what the answer says</u>" if quotes else ""), dim=True)
        if given.sources
        else "",
        folded(f"How it came about: {many(len(trace.rounds), 'round')}, {took}", _trace(trace)),
    )


def _source(source: Source, place: int, question: str) -> str:
    found = marked(source.text, question)
    quotes = [(quote.start - source.start, quote.end - source.start) for quote in source.quotes]
    return _item(
        _head(place, source.title, source.heading, source.id),
        line(f"round {source.round}, {_scored(source.score, source.relevance)}", dim=True),
        _clipped(source.text, [*quoted(quotes), *words(found)], [*quotes, *found, (0, 0)][0]),
    )


def trace(made: Trace) -> str:
    """Rounds and times."""
    return page(_trace(made))


def _trace(made: Trace) -> str:
    taken = {stage: value for stage, value in made.seconds.items() if value > 0}
    total = sum(taken.values())
    tokens = f"{made.context_tokens:,} tokens of documents read as {escaped(made.mode)}, {made.new_tokens:,} written"
    called = {"mentions": "shared names"}
    beside = ", ".join(f"{called.get(name, name)} (weight {weight:g})" for name, weight in made.beside.items())
    ended = f"The rounds ended: {escaped(made.ended)}." if made.ended else ""
    relevance = "" if made.relevance is None else f"The best document's relevance is {made.relevance:.0%}."
    rounds = [_round(number, one) for number, one in enumerate(made.rounds, 1)]
    return "".join(
        [
            bar(taken, total),
            line(*(key(stage, seconds(value)) for stage, value in taken.items())),
            line(f"{seconds(total)} in all; {tokens}; {_FINISHES.get(made.finish, escaped(made.finish))}.", dim=True),
            line(f"Beside routing keys: {escaped(beside)}." if beside else "", relevance, ended, dim=True),
            table(_ROUND, rounds, (3,)) if rounds else "",
        ]
    )


def _round(number: int, made: Round) -> list[str]:
    found = zip(made.selected, made.scores, strict=True)
    asked = " ".join(made.query.split())
    return [
        str(number),
        spanned(asked, [], 0, window(asked, (0, 0), _ASKED)[1]),
        "<br>".join(f"<code>{inline(name)}</code> {score:.3f}" for name, score in found),
        seconds(sum(made.seconds.values())),
    ]


def explanation(made: Explanation) -> str:
    """The signals that brought a document, and the text with each chunk as dark as its key fits."""
    place = f"place {made.place:,} of {made.considered:,} considered"
    return page(
        line(f"<b>{inline(made.question)}</b>"),
        _head(None, made.title, "", made.id),
        line(f"{place}, {_scored(made.score, made.relevance)}; the first has {made.best:.3f}", dim=True),
        _signals(made.signals, made.best),
        table(["signal", "adds", "place by it alone", "from"], _reasons(made), (1, 2)),
        _shaded(made),
    )


def _reasons(made: Explanation) -> list[list[str]]:
    layers = ", ".join(f"layer {layer} {score:.3f}" for layer, score in made.layers.items())
    each = ", ".join(f"<mark>{inline(word)}</mark> {added:.3f}" for word, added in made.words.items())
    named = [
        f"the question names it {by.added:.3f}"
        if by.id is None
        else f"{'shares a name with' if by.shared else 'named in'} {inline(by.title)} <code>{inline(by.id)}</code> "
        f"{by.added:.3f}"
        for by in made.named
    ]
    from_ = {
        "keys": f"the best of {many(len(made.chunks), 'chunk')}: {layers}",
        "words": each or "no word of the question is in it",
        "names": "; ".join(named) or "neither the question nor what was found names it",
        **({"recency": "it is that new"} if "recency" in made.signals else {}),
    }
    return [
        [
            key(name, ""),
            f"{made.signals.get(name, 0.0):.3f}",
            str(made.places[name]) if name in made.places else "",
            said,
        ]
        for name, said in from_.items()
    ]


def _shaded(made: Explanation) -> str:
    """The text around the best chunk, the chunks shaded from the worst to the best."""
    best = max(made.chunks, key=lambda part: part.score)
    worst = min(part.score for part in made.chunks)
    depth = best.score - worst
    spans = [
        chunk(part.start, part.end, part.score, (part.score - worst) / depth if depth else 1.0)
        for part in made.chunks
        if part.start < part.end
    ]
    start, end = window(made.text, (best.start, best.end), _WHOLE)
    found = [(a + start, b + start) for a, b in marked(made.text[start:end], made.question)]
    text = spanned(made.text, [*spans, *words(found)], start, end)
    return f'<div class="text" dir="auto">{text}</div>' + line(
        "<mark>words of the question</mark>,",
        '<span class="chunk">parts of the text by routing key, the darker the better it fits</span>',
        dim=True,
    )


def _head(place: int | None, title: str, heading: str, name: str) -> str:
    number = "" if place is None else f"{place}."
    called = " \u203a ".join(inline(part) for part in (title, heading) if part)
    return line(number, f"<b>{called}</b>" if called else "", f"<code>{inline(name)}</code>")


def _signals(signals: Mapping[str, float], best: float) -> str:
    """A bar as long as the score beside the best one, in the colours of what it is the sum of."""
    return bar(signals, best) + line(*(key(name, f"{value:.3f}") for name, value in signals.items()), dim=True)


def _scored(score: float, relevance: float | None) -> str:
    return f"score {score:.3f}" + ("" if relevance is None else f", relevance {relevance:.0%}")


def _item(*parts: str) -> str:
    return f'<div class="item">{"".join(parts)}</div>'


def _clipped(text: str, spans: Sequence[MarkedSpan], focus: tuple[int, int]) -> str:
    """A passage, or what of it fits around the `focus`."""
    return f'<p dir="auto">{spanned(text, spans, *window(text, focus, _SHOWN))}</p>'


def _times(taken: Mapping[str, float]) -> str:
    if not taken:
        return ""
    return f"in {seconds(sum(taken.values()))}: " + ", ".join(f"{stage} {seconds(s)}" for stage, s in taken.items())
