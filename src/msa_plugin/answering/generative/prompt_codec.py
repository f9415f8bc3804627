"""The words of generative interleave as token ids (golden spec 4.1, 6.1, 6.7).

Only markers that are put here, or that the model writes in its own turn, are control tokens: documents and questions
are tokenised as data, whatever they contain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from msa_plugin import prompts
from msa_plugin.answering.generative.constraint import IdVocabulary
from msa_plugin.answering.per_layer import LayerRow
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import Lora
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.assembly import TemplateHead, encode_head


class PromptCodec:
    """Markers, template and sentences of one backbone."""

    def __init__(self, backbone: Backbone, lora: Lora | None = None) -> None:
        """`lora` is that of the passes behind `head`.

        Raises ConfigError when the tokenizer lacks a marker, or would read one out of plain text.
        """
        self.backbone, self._lora = backbone, lora
        markers = (prompts.TURN_START, prompts.TURN_END, _list_end(backbone))
        self.start, self.end, self.list_end = (backbone.special(m) for m in markers)
        if {self.start, self.end, self.list_end} & set(backbone.tokenize("".join(markers))):
            raise ConfigError(f"the tokenizer of {backbone.name} reads markers in plain text as control tokens")

    @cached_property
    def head(self) -> TemplateHead:
        """K and V of the template's head in every layer."""
        return encode_head(self.backbone, self.backbone.tokenize_frame(prompts.TEMPLATE_HEAD), self._lora)

    @cached_property
    def retrieved(self) -> list[int]:
        """What the model writes when it needs no more documents."""
        return self.backbone.tokenize(prompts.RETRIEVED)

    @cached_property
    def numbers(self) -> IdVocabulary:
        """Tokens that numbers in brackets are written with."""
        return IdVocabulary.of(self.backbone)

    @cached_property
    def answer_ends(self) -> frozenset[int]:
        """Tokens that end an answer: an end of turn, or a marker that has no place in one."""
        return self.backbone.end_ids | {self.start, self.end, self.list_end}

    @cached_property
    def _frame(self) -> list[int]:
        return [*self.backbone.tokenize_frame(prompts.TEMPLATE_TAIL), self.start]

    def question(self, question: str) -> LayerRow:
        """The first round's row: the question and the words around it vote, the template does not."""
        ids = self.backbone.tokenize(prompts.memory_question(question))
        return LayerRow(ids + self._frame, [True] * len(ids) + [False] * len(self._frame))

    def rows(self, questions: Sequence[str], answering: bool) -> list[LayerRow]:
        """The first round's rows, the same whether they are to be answered or only ranked."""
        return [*map(self.question, questions)]

    def answer_start(self, question: str) -> list[int]:
        """What follows the last round: retrieval is over, the question once more, and the answer's first words."""
        again, answering = self.backbone.tokenize_batch([prompts.question_again(question), prompts.ANSWERING])
        return [*self.retrieved, self.start, *again, self.list_end, *answering]


def _list_end(backbone: Backbone) -> str:
    """The reference's marker, or what stands in for it where the tokenizer lacks that (SmolLM2's has no such one)."""
    try:
        backbone.special(prompts.LIST_END)
    except ConfigError:
        with suppress(ConfigError):
            backbone.special(prompts.LIST_END_ELSE)
            return prompts.LIST_END_ELSE
    return prompts.LIST_END


@dataclass
class Transcript:
    """A question and the documents fetched for it so far, round by round."""

    codec: PromptCodec
    question: str
    rounds: list[tuple[list[int], dict[int, str]]] = field(default_factory=list)

    def add(self, fetched: Mapping[int, str]) -> None:
        """Documents that a round fetched, by number, in the order in which the model named them.

        Their texts stand there in ascending order, as in training (golden spec 6.3).
        """
        self.rounds.append((list(fetched), dict(sorted(fetched.items()))))

    def row(self, *, answering: bool = False) -> LayerRow:
        """The row of the next prefill; `answering` ends it where the answer begins.

        From the second round on the question votes without its last newline, and of the documents only those that
        the last round fetched (golden spec 6.7).
        """
        first = self.codec.question(self.question)
        ids, votes = list(first.ids), list(first.votes)
        tokenize = self.codec.backbone.tokenize
        if self.rounds:
            asked = len(tokenize(prompts.memory_question(self.question).removesuffix("\n")))
            votes[asked:] = [False] * (len(votes) - asked)
        for at, (named, texts) in enumerate(self.rounds):
            written = tokenize("".join(map(prompts.numbered_tail, named)))
            inserted = tokenize(prompts.inserted(list(texts), list(texts.values())))
            ids += [*written, self.codec.list_end, *inserted, self.codec.list_end]
            newest = at == len(self.rounds) - 1
            votes += [False] * (len(written) + 1) + [newest] * len(inserted) + [False]
        if answering:
            start = self.codec.answer_start(self.question)
            ids += start
            votes += [False] * len(start)
        return LayerRow(ids, votes)
