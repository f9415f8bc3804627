"""A step of a chain as one packed row: template head, documents with numbers, question and what was found, response.

The words are those of inference (`answering.generative.prompt_codec`): what the model is to write has labels, what the
engine puts there has none. A step after the first has what was found in its transcript and not among its documents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.answering.generative.prompt_codec import PromptCodec, Transcript
from msa_plugin.answering.per_layer import LayerRow
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.encoding.numbering import FIRST_ORDINAL, Numbering
from msa_plugin.errors import TrainingError
from msa_plugin.prompts import document_text
from msa_plugin.retrieval.bm25 import WordIndex
from msa_plugin.training.data import Corpus, Hop, drawn_numbers
from msa_plugin.training.losses import IGNORED
from msa_plugin.training.packed import QUESTION, RESPONSE, TEMPLATE, Packed

_MINED = 32  # passages a question
Miner = Callable[[Corpus, Hop], Sequence[str]]  # ids of passages that look right and are not, worst mistake first


@dataclass(frozen=True)
class PackedSample:
    """One row: `ids`, `positions`, `documents` and `labels` a token; `positives` says of its documents which are right.

    `labels` are the token itself where it is learnt, IGNORED elsewhere.
    """

    ids: list[int]
    positions: list[int]
    documents: list[int]
    labels: list[int]
    positives: list[bool]


@dataclass(frozen=True)
class Batch:
    """Samples as a batch of rows; `columns` [K] are the places whose next token has a label in some row."""

    packed: Packed
    labels: Tensor
    positives: list[Tensor]
    columns: Tensor

    @classmethod
    def of(cls, samples: Sequence[PackedSample], device: torch.device) -> Batch:
        """Right padded to the longest."""
        width = max(len(s.ids) for s in samples)

        def rows(values: Sequence[Sequence[int]], fill: int) -> Tensor:
            return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values], device=device)

        ids = rows([s.ids for s in samples], 0)
        mask = rows([[1] * len(s.ids) for s in samples], 0).bool()
        labels = rows([s.labels for s in samples], IGNORED)
        positions, owners = rows([s.positions for s in samples], 0), rows([s.documents for s in samples], RESPONSE)
        packed = Packed(ids, positions, owners, mask)
        columns = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
        return cls(packed, labels, [torch.tensor(s.positives, device=device) for s in samples], columns)


@dataclass
class Sampler:
    """Turns steps into samples with documents of `memory_tokens` tokens in all.

    A row's documents are those wanted, at most `hard` of every miner's, passages wanted by other rows of its batch,
    and random ones, in random order; numbers have up to `width` digits. A document longer than `window` tokens is cut.
    A share `latent` of the answers is asked for without the texts of what was found: from what is pooled alone.
    """

    backbone: Backbone
    top_k: int
    width: int
    memory_tokens: int
    window: int = 1024
    hard: int = 4
    latent: float = 0.0
    miners: Sequence[Miner] = ()
    _codec: PromptCodec = field(init=False)
    _numbering: Numbering = field(init=False)

    def __post_init__(self) -> None:
        """Raises ConfigError when the tokenizer lacks a marker."""
        self._codec = PromptCodec(self.backbone)
        self._numbering = Numbering(self.backbone, self.width)
        self._head = self.backbone.tokenize_frame(prompts.TEMPLATE_HEAD)

    def samples(self, steps: Sequence[tuple[Corpus, Hop]], generator: random.Random) -> list[PackedSample]:
        """One a step. Raises TrainingError naming a step that cannot be made into a row."""
        asked: dict[str, list[str]] = {}
        for corpus, step in steps:
            asked.setdefault(corpus.name, []).extend(step.wanted)
        return [self.sample(corpus, step, asked[corpus.name], generator) for corpus, step in steps]

    def sample(self, corpus: Corpus, step: Hop, others: Sequence[str], generator: random.Random) -> PackedSample:
        """The row of one step; `others` are passages of its corpus that other rows want."""
        chain = (*step.found, *step.wanted)
        if absent := [i for i in chain if i not in corpus.documents]:
            raise TrainingError(f"{corpus.name}: {step.question!r} wants {absent[0]!r}, which its corpus lacks")
        latent = bool(step.answer) and generator.random() < self.latent
        wanted = step.found if step.answer else step.wanted  # an answer is read from what was found
        numbers = iter(self._numbers(len(chain), generator))
        numbered = {i: next(numbers) for i in chain}
        windows = self._documents(corpus, step, wanted, others, numbered, numbers, generator)
        ids, positions, documents = list(self._head), list(range(len(self._head))), [TEMPLATE] * len(self._head)
        for place, (_, window) in enumerate(windows, 1):
            ids += window
            positions += range(len(window))
            documents += [place] * len(window)
        row, response = self._exchange(corpus, step, numbered, latent)
        start = len(self._head) + self.top_k
        if start + len(row.ids) + len(response) > self.backbone.spec.max_positions:
            raise TrainingError(
                f"{corpus.name}: the question {step.question[:60]!r} with what was found has {len(row.ids)} tokens, "
                f"more than {self.backbone.name} reads; leave it out of the data"
            )
        written = [t for t, _ in response]
        labels = [IGNORED] * (len(ids) + len(row.ids)) + [t if learnt else IGNORED for t, learnt in response]
        ids += [*row.ids, *written]
        positions += range(start, start + len(row.ids) + len(written))
        documents += [QUESTION if vote else RESPONSE for vote in row.votes] + [RESPONSE] * len(written)
        return PackedSample(ids, positions, documents, labels, [name in wanted for name, _ in windows])

    def _numbers(self, least: int, generator: random.Random) -> list[int]:
        """Enough for the row, of any width that gives so many: small memories have short numbers."""
        most = least + self.memory_tokens // 8
        shortest = min(len(str(most)), self.width)
        width = generator.randint(shortest, self.width)
        return drawn_numbers(max(least, min(most, 10**width)), width, generator)

    def _documents(
        self,
        corpus: Corpus,
        step: Hop,
        wanted: Sequence[str],
        others: Sequence[str],
        numbered: Mapping[str, int],
        numbers: Iterator[int],
        generator: random.Random,
    ) -> list[tuple[str, list[int]]]:
        """Passages with their windows of ids, the right ones among others, as many as fit."""
        chain = {*step.found, *step.wanted}
        gold = {corpus.documents[i].content_hash for i in chain}
        found = [(i, self._window(corpus, i, numbered[i])) for i in wanted]
        room = self.memory_tokens - sum(len(w) for _, w in found)
        taken = set(chain)
        for name in self._candidates(corpus, step, others, generator):
            if name in taken or corpus.documents[name].content_hash in gold:
                continue
            number = next(numbers, None)
            if number is None:
                break
            window = self._window(corpus, name, number)
            if len(window) > room:
                break
            taken.add(name)
            found.append((name, window))
            room -= len(window)
        generator.shuffle(found)
        return found

    def _candidates(self, corpus: Corpus, step: Hop, others: Sequence[str], generator: random.Random) -> Iterator[str]:
        chain = {*step.found, *step.wanted}
        for mine in self.miners:
            yield from [name for name in mine(corpus, step)[: self.hard + len(chain)] if name not in chain][: self.hard]
        yield from others
        names = corpus.names
        for _ in range(4 * len(names)):
            yield names[generator.randrange(len(names))]

    def _window(self, corpus: Corpus, name: str, number: int) -> list[int]:
        document = corpus.documents[name]
        text = document_text(document.title, document.text)
        return self._numbering.windows(text, number + FIRST_ORDINAL, self.window)[0][0]

    def _exchange(
        self, corpus: Corpus, step: Hop, numbered: Mapping[str, int], latent: bool
    ) -> tuple[LayerRow, list[tuple[int, bool]]]:
        """The row as inference feeds it, and what follows with whether it is learnt."""
        codec = self._codec
        transcript = Transcript(codec, step.question)
        for name in () if latent else step.found:
            document = corpus.documents[name]
            transcript.add({numbered[name]: document_text(document.title, document.text)})
        tokenize = self.backbone.tokenize
        if not step.answer:
            named = tokenize(prompts.numbered_tail(numbered[step.wanted[0]]))
            return transcript.row(), [(t, True) for t in [*named, codec.list_end]]
        answering = tokenize(prompts.ANSWERING)
        start = codec.answer_start(step.question)
        written = len(codec.retrieved)
        learnt = [i < written or i >= len(start) - len(answering) for i in range(len(start))]
        said = [*tokenize(f" {step.answer.strip()}"), codec.end]
        return transcript.row(), [*zip(start, learnt, strict=True), *((t, True) for t in said)]


class LexicalNegatives:
    """Mines the best passages by BM25 for the question and what was found, whatever is right among them."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        """Indexes every corpus."""
        self._score = {
            c.name: WordIndex([document_text(d.title, d.text) for d in c.documents.values()]).asked for c in corpora
        }

    def __call__(self, corpus: Corpus, step: Hop) -> list[str]:
        """Ids, best first."""
        found = [corpus.documents[i].text for i in step.found[-1:]]
        scores = torch.from_numpy(self._score[corpus.name](" ".join([step.question, *found])))
        best = scores.topk(min(_MINED, len(scores))).indices.tolist()
        return [corpus.names[i] for i in best]
