"""Answers from passages that nobody has to find: none, all, exactly the right ones, or exactly wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from msa_plugin import prompts
from msa_plugin.bench.base import Cost, Reply, Workspace
from msa_plugin.bench.systems.common import BenchSystem, text_bytes, texts
from msa_plugin.bench.systems.lexical import Bm25
from msa_plugin.engine.engine import Engine
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory


class ClosedBook(BenchSystem):
    """The backbone alone, in the same prompt without documents."""

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from what the model knows."""
        return self.workspace.read(questions, [[] for _ in questions]) if questions else []


class Gold(BenchSystem):
    """The passages that answer a question, as the data set names them: what finding can gain at most."""

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from the passages that the data set names. Raises ConfigError for a question that it lacks."""
        known = _positives(self.workspace)
        if unknown := [q for q in questions if q not in known]:
            raise ConfigError(f"{self.name} answers the data set's own questions, of which {unknown[0]!r} is none")
        return self.workspace.read(questions, [known[q] for q in questions]) if questions else []


class Lures(BenchSystem):
    """Passages that look right and are not: the best by BM25 without those that answer. To abstain is right here.

    As many are read as a round of an iterative system keeps.
    """

    @cached_property
    def words(self) -> Bm25:
        """What finds them."""
        return Bm25("bm25", self.workspace)

    def prepare(self) -> Cost:
        """What an index of words costs."""
        return self.words.prepare()

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from wrong passages, as far as the data set names the right ones."""
        known, count, rows = _positives(self.workspace), self.options.per_round, []
        for question in questions:
            right = known.get(question, [])
            [found] = self.words.find([question], count + len(right))
            rows.append([hit.id for hit in found.ranking if hit.id not in right][:count])
        return self.workspace.read(questions, rows) if rows else []


class FullContext(BenchSystem):
    """Every passage in the prompt, in the order of the corpus, where the backbone's window holds them all."""

    def prepare(self) -> Cost:
        """Nothing is indexed. Raises ConfigError, with both numbers, for a corpus that does not fit."""
        _ = self.wide
        stored = text_bytes(self.documents)
        return Cost(0.0, self.workspace.tokens, stored, stored)

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from all passages, one question at a time: prompts this long leave no room for a batch.

        The prompt ends with the first passage of the corpus, as prompts end with the best one elsewhere.
        Raises ConfigError as `prepare`, and for a question with which the prompt is too long.
        """
        engine = self.wide.engine
        for question in questions:
            asked = len(engine.backbone.tokenize(prompts.question_part(question, briefly=True)))
            self._check(engine, engine.context_tokens, asked)
        return [self.wide.read([question], [[d.id for d in self.documents]])[0] for question in questions]

    @cached_property
    def wide(self) -> Workspace:
        """The same workspace with a budget for all documents: the same bank, prompt and decoding."""
        engine = self.workspace.engine
        parts = prompts.reading_parts(texts(self.documents))
        tokens = sum(map(len, engine.backbone.tokenize_batch(parts))) if parts else 0
        self._check(engine, tokens, 0)
        config = engine.config.model_copy(update={"context_tokens": max(1, tokens)})
        wide = Engine(engine.backbone, engine.adapter, engine.bank, config)
        return replace(self.workspace, opened=LatentMemory(wide, engine.bank, self.workspace.opened.namespace))

    def _check(self, engine: Engine, documents: int, question: int) -> None:
        generation = self.workspace.generation
        room = int(generation.get("max_new_tokens", engine.config.generation.max_new_tokens))
        frame = len(engine.reader.head_ids) + len(engine.reader.tail_ids)
        needed, longest = documents + frame + question + room, engine.backbone.spec.max_positions
        if needed > longest:
            raise ConfigError(
                f"full-context: the corpus with its prompt and answer has {needed:,} tokens, "
                f"{engine.backbone.name} reads {longest:,}"
            )


def _positives(workspace: Workspace) -> dict[str, list[str]]:
    """Ids of the passages that answer each question; of two alike the first one's."""
    return {q.text: list(q.positives) for q in reversed(workspace.dataset.questions)}
