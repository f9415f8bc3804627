"""Iterative retrieval with any base: what was found decides what is searched for next.

`iterative` follows Iter-RetGen (Shao et al., 2023) in appending text to the question, which here is the text of the
best passage found, since that is what MSA's rounds do. `decompose` follows Auto-RAG (Yu et al., 2024): the model reads
what was found and writes the next query, or that nothing is missing.

Rounds are merged as MSA's are: the best `per_round` new passages of each round, round after round, and behind them the
rest of the first round's ranking.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from msa_plugin import prompts
from msa_plugin.answering.reading import allowances
from msa_plugin.bench.base import Found
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems.common import Composite, Seconds, merged, summed, timed
from msa_plugin.config import GenerationConfig

QUERY_TOKENS = 32
_NOTHING_MISSING = re.compile(r"(none|nothing|no more|no further|no query)\b", re.IGNORECASE)


@dataclass
class _Course:
    """One question on its way through the rounds: its next query, what they kept, and seconds not yet in a round."""

    question: str
    ask: str | None
    first: tuple[Scored, ...] = ()
    kept: list[list[Scored]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    rounds: list[Seconds] = field(default_factory=list)
    planning: Seconds = field(default_factory=dict)

    def take(self, query: str, found: Found, per_round: int) -> None:
        """Take one round's ranking. What it took to think of the query is part of the round."""
        if not self.kept:
            self.first = found.ranking
        known = {hit.id for ranking in self.kept for hit in ranking}
        self.kept.append([hit for hit in found.ranking if hit.id not in known][:per_round])
        self.queries.append(query)
        self.rounds.append(summed([self.planning, found.seconds]))
        self.planning = {}

    def found(self, k: int) -> Found:
        """Everything so far as one ranking; a plan that led to no further search is part of the last round."""
        *before, last = self.rounds
        rounds = (*before, summed([last, self.planning]))
        return Found(merged(self.kept, self.first, k), summed(rounds), tuple(self.queries), rounds)


class Iterative(Composite):
    """Iter-RetGen without a generated text: the next query is the question followed by the best new passage."""

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question; seconds and queries of each round are in `Found`."""
        courses = [_Course(question, question) for question in questions]
        depth = max(k, self.options.per_round * self.options.rounds)  # so that a round can bring as many new ones
        searching = courses
        for number in range(self.options.rounds):
            if number:
                for course in searching:
                    course.ask = self._next_query(course)
            asked = [(course, course.ask) for course in searching if course.ask is not None]
            if not asked:
                break
            rankings = self.bases[0].find([query for _, query in asked], depth)
            for (course, query), found in zip(asked, rankings, strict=True):
                course.take(query, found, self.options.per_round)
            searching = [course for course, _ in asked]
        return [course.found(k) for course in courses]

    def _next_query(self, course: _Course) -> str | None:
        """What the next round asks; None after a round that found nothing new."""
        new = course.kept[-1]
        return self._follow_up(course.question, self.texts[new[0].id]) if new else None

    def _follow_up(self, question: str, found: str) -> str:
        """Question and passage, cut where they are longer than a query may be."""
        engine = self.workspace.engine
        backbone = engine.backbone
        room = engine.encoder.layout.text - len(backbone.tokenize(f"{question}\n"))
        ids = backbone.tokenize(found)
        if len(ids) > room:
            found = backbone.detokenize(ids[: max(0, room - 1)]).strip("\ufffd")
        return prompts.follow_up(question, found)


class Decomposed(Iterative):
    """Auto-RAG: the backbone writes the next query from the question and what was found.

    It ends after `rounds` searches, when the model says that nothing is missing, and when it repeats a query.
    """

    def _next_query(self, course: _Course) -> str | None:
        with timed(course.planning, "generate"):
            query = self._written(course)
        said = {"", *map(_squeezed, course.queries)}
        return None if _squeezed(query) in said else query

    def _written(self, course: _Course) -> str:
        """The first line that the model writes, empty when it says that nothing is missing."""
        passages = [self.texts[hit.id] for ranking in course.kept for hit in ranking]
        options = {name: v for name, v in self.workspace.generation.items() if name in GenerationConfig.model_fields}
        options["max_new_tokens"] = QUERY_TOKENS
        messages = prompts.next_query(course.question, self._fitting(course.question, passages))
        text = self.workspace.opened.chat(messages, **options).text
        line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        return "" if _NOTHING_MISSING.match(line.lstrip("\"'.-* ")) else line

    def _fitting(self, question: str, passages: list[str]) -> list[str]:
        """The passages' beginnings, so that the prompt and the query fit the backbone's window."""
        backbone = self.workspace.engine.backbone
        bare = prompts.conversation(backbone.tokenizer, prompts.next_query(question, [""] * len(passages)))
        used = sum(len(backbone.tokenize_frame(text) if frame else backbone.tokenize(text)) for text, frame in bare)
        room = backbone.spec.max_positions - used - QUERY_TOKENS - len(passages)
        rows = backbone.tokenize_batch(passages) if passages else []
        budget = max(0, min(room, self.workspace.engine.context_tokens))
        granted = allowances([len(ids) for ids in rows], budget)
        return [
            text if size >= len(ids) else backbone.detokenize(ids[:size]).strip("\ufffd")
            for text, ids, size in zip(passages, rows, granted, strict=True)
        ]


def _squeezed(query: str) -> str:
    return " ".join(re.findall(r"\w+", query.casefold()))
