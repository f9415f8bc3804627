"""Answers from passages that nobody has to find: none, all, exactly the right ones, or exactly wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msa_plugin import prompts
from msa_plugin.bench.base import Cost, Reply, Workspace
from msa_plugin.bench.systems.common import Options, text_bytes, texts
from msa_plugin.bench.systems.lexical import Bm25
from msa_plugin.engine.engine import Engine
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory


class ClosedBook:
    """The backbone alone, in the same prompt without documents."""

    def __init__(self, name: str, workspace: Workspace, options: Options) -> None:
        """`name` is what the command line called it."""
        self.name, self.workspace = name, workspace

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from what the model knows."""
        if not questions:
            return []
        return self.workspace.read(questions, [[] for _ in questions])


class Gold:
    """The passages that answer a question, as the data set names them: what finding can gain at most."""

    def __init__(self, name: str, workspace: Workspace, options: Options) -> None:
        """`name` is what the command line called it."""
        self.name, self.workspace = name, workspace
        self._positives = {q.text: list(q.positives) for q in reversed(workspace.dataset.questions)}

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from the passages that the data set names. Raises ConfigError for a question that it lacks."""
        if unknown := [q for q in questions if q not in self._positives]:
            raise ConfigError(f"{self.name} answers the data set's own questions, of which {unknown[0]!r} is none")
        return self.workspace.read(questions, [self._positives[q] for q in questions]) if questions else []


class Lures:
    """Passages that look right and are not: the best by BM25 without those that answer. To abstain is right here."""

    def __init__(self, name: str, workspace: Workspace, options: Options) -> None:
        """`name` is what the command line called it; as many passages are read as a round of `options` keeps."""
        self.name, self.workspace, self.count = name, workspace, options.per_round
        self._words = Bm25("bm25", workspace, options)
        self._positives = {q.text: set(q.positives) for q in reversed(workspace.dataset.questions)}

    def prepare(self) -> Cost:
        """What an index of words costs."""
        return self._words.prepare()

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from wrong passages, as far as the data set names the right ones."""
        if not questions:
            return []
        known = [self._positives.get(q, set()) for q in questions]
        found = self._words.find(questions, self.count + max(map(len, known)))
        wrong = [
            [hit.id for hit in one.ranking if hit.id not in right] for one, right in zip(found, known, strict=True)
        ]
        return self.workspace.read(questions, [ids[: self.count] for ids in wrong])

    def close(self) -> None:
        """Forget the index of words."""
        self._words.close()


class FullContext:
    """Every passage in the prompt, in the order of the corpus, where the backbone's window holds them all."""

    def __init__(self, name: str, workspace: Workspace, options: Options) -> None:
        """`name` is what the command line called it."""
        self.name, self.workspace = name, workspace
        self._wide: Workspace | None = None

    def prepare(self) -> Cost:
        """Nothing is indexed. Raises ConfigError, with both numbers, for a corpus that does not fit."""
        self._wide = self._whole()
        stored = text_bytes(self.workspace.dataset.documents)
        return Cost(0.0, self.workspace.tokens, stored, stored)

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from all passages, one question at a time: prompts this long leave no room for a batch.

        The prompt ends with the first passage of the corpus, as prompts end with the best one elsewhere.
        Raises ConfigError as `prepare`, and for a question with which the prompt is too long.
        """
        wide = self._wide or self._whole()
        ids = [d.id for d in self.workspace.dataset.documents]
        engine = wide.engine
        for question in questions:
            asked = len(engine.backbone.tokenize(prompts.question_part(question, briefly=True)))
            self._check(engine, engine.context_tokens, asked)
        return [wide.read([question], [ids])[0] for question in questions]

    def close(self) -> None:
        """Forget the wide view; the memory is the workspace's."""
        self._wide = None

    def _whole(self) -> Workspace:
        """The same workspace with a budget for all documents: the same bank, prompt and decoding."""
        engine = self.workspace.engine
        parts = prompts.reading_parts(texts(self.workspace.dataset.documents))
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
