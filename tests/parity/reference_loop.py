"""The reference's outer loop: calls until every transcript is final (golden spec 6.6).

A harness: it shows that the parts of the product repeat what was recorded, mistakes of the loop included.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import reference_text
from reference_call import ReferenceCall, ReferencePass, Start
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.answering.answers import Events, source
from msa_plugin.answering.decoding import TokenSampler
from msa_plugin.answering.excerpts import all_of
from msa_plugin.answering.per_layer import LayerRouting
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.bank.documents import StoredDocument
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.config import GenerationConfig
from msa_plugin.encoding.numbering import FIRST_ORDINAL
from msa_plugin.retrieval.assembly import TemplateHead, encode_head
from msa_plugin.types import Answer, Round, Trace

# The reference has no limit and can loop for ever (golden spec 6.6, scenario 4).
MAX_CALLS = 32
MAX_TOKENS = 512


@dataclass
class _Asked:
    question: str
    prompt: str
    transcript: str = ""
    rounds: list[Round] = field(default_factory=list)
    found: dict[int, int] = field(default_factory=dict)  # number -> round


class ReferenceLoop:
    """Answers batches as the reference does, over the documents that a selection admits."""

    def __init__(self, layers: LayerRouting, bank: BankHandle, top_k: int) -> None:
        """`layers` runs the prefills."""
        self.layers, self.bank, self.top_k = layers, bank, top_k
        self.backbone = layers.backbone
        words = self.backbone.tokenize_frame(prompts.TEMPLATE_HEAD)
        self.head: TemplateHead = encode_head(self.backbone, words, layers.lora)

    def start(self, selection: Selected) -> Start:
        """Begins calls over the documents of `selection`."""

        def prefill(ids: Tensor, mask: Tensor, votes: Tensor, positions: Tensor) -> tuple[ForwardState, Tensor]:
            layers, source = self.layers, self.layers.routing(votes, self.head, self.top_k, selection)
            state = ReferencePass(source=source, router=layers.router, keep_cache=True, lora=layers.lora)
            run = layers.finish(state, source, ids, mask, votes, positions, True)
            assert run.logits is not None
            return state, run.logits[:, -1]

        return prefill

    def ask(self, questions: Sequence[str], selection: Selected, generation: GenerationConfig) -> Events:
        """Answer a batch; yields (row, text) and (row, Answer), each once a row's transcript is final."""
        began = time.perf_counter()
        documents = self._documents(selection)
        texts = {n: prompts.document_text(d.title, d.text) for n, d in documents.items()}
        asked = [_Asked(question, question) for question in questions]
        active = list(range(len(asked)))
        while active:
            transcripts = self._call([asked[i].prompt for i in active], texts, selection, generation)
            going_on = []
            for row, transcript in zip(active, transcripts, strict=True):
                one = asked[row]
                self._note(one, transcript, documents)
                following = reference_text.following(transcript)
                if following is not None and len(one.rounds) < MAX_CALLS:
                    one.prompt = following
                    going_on.append(row)
                    continue
                answer = self._answer(one, documents, following is None, time.perf_counter() - began)
                if answer.text:
                    yield row, answer.text
                yield row, answer
            active = going_on

    def _call(
        self, prompts_: Sequence[str], texts: Mapping[int, str], selection: Selected, generation: GenerationConfig
    ) -> list[str]:
        rows = [reference_text.request(self.backbone, prompt) for prompt in prompts_]
        call = ReferenceCall(self.backbone, texts, rows, self.top_k)
        sampler = TokenSampler(generation, len(rows))
        limit = max(MAX_TOKENS, generation.max_new_tokens)
        return call.run(self.start(selection), sampler.pick, limit, self.backbone.end_ids)

    def _documents(self, selection: Selected) -> dict[int, StoredDocument]:
        stored = self.bank.documents(selection.ordinals().tolist())
        return {d.ordinal - FIRST_ORDINAL: d for d in stored}

    def _note(self, one: _Asked, transcript: str, documents: Mapping[int, StoredDocument]) -> None:
        """Remember what a call found: every number in its new text that is a document's (6.8)."""
        new = transcript.removeprefix(one.prompt.removeprefix(reference_text.AGAIN))
        one.transcript = transcript
        found = [n for n in reference_text.numbers(new) if n in documents and n not in one.found]
        one.rounds.append(Round(one.question, tuple(documents[n].id for n in found), (), {}))
        one.found |= dict.fromkeys(found, len(one.rounds))

    def _answer(self, one: _Asked, documents: Mapping[int, StoredDocument], final: bool, seconds: float) -> Answer:
        read = [(documents[n], at) for n, at in one.found.items()]
        text = reference_text.answer(one.transcript)
        trace = Trace(
            mode="latent",
            abilities=("read_latent", "emit_ids"),
            rounds=tuple(one.rounds),
            seconds={"total": seconds},
            prompt_tokens=len(self.backbone.tokenize_frame(one.transcript)),
            context_tokens=0,
            new_tokens=len(self.backbone.tokenize(text)) if text else 0,
            finish="stop" if final else "length",
            head_tokens=self.head.length,
            interleave="reference",
            ids="global",
        )
        sources = (source(d, all_of(d, 0.0), 0.0, at) for d, at in read)
        return Answer(text, tuple(sources), trace)
