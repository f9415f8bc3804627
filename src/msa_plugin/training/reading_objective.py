"""Teaching the backbone to read pooled K, V: LoRA above the router, the language-model loss through what banks keep.

Rows are those of `reading="latent"`: every document alone at positions from 0, pooled as the encoder pools it, with
gradients; question and answer behind the frame's head and those chunks. Which documents are read is given: an adapter
that ranks once for all layers has chosen before it reads. Besides answers, documents are repeated word for word from
their chunks (as in arXiv 2307.06945): an answer has five tokens to learn from, a document a hundred.
Shapes: C chunks, KV key/value heads, D head dim.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from msa_kernels import chunk_offsets, pool_chunks
from msa_plugin import prompts
from msa_plugin.attention_context import LayerContext
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.attention import ActivationRecorder, CausalRows, ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import TARGETS, Lora
from msa_plugin.config import Abilities, ContentConfig, Layers, Settings, Size
from msa_plugin.encoding.encoder import pad_right, plan_batches
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.retrieval.assembly import TemplateHead, encode_head, padded, with_head
from msa_plugin.training.data import Corpus, Hop, batches, held_apart
from msa_plugin.training.samples import LexicalNegatives
from msa_plugin.training.trainer import Losses

_BATCH_TOKENS = 1024  # of documents in a forward


class ReadingConfig(Settings):
    """What reads, what of it trains, and what it reads in training.

    `layers` read (None: all after the last routing layer); LoRA of `rank` on `modules` of the last routing layer and
    all above trains, the updates below stay as they are. Micro-batches of `rows` take `poolings` by turns; the first is
    the adapter's own. A share `repeat` of them repeats a document, the others answer. A row has the documents that its
    answer needs and others up to `documents`, each cut to `document_tokens`. `held_out` questions of each data set are
    kept aside for `evaluate`, which takes at most `evaluate_rows`.
    """

    name: str = "reading"
    layers: Layers | None = None
    poolings: tuple[Size, ...] = (4,)
    rank: int = Field(default=16, gt=0)
    modules: tuple[str, ...] = TARGETS
    rows: int = Field(default=4, gt=0)
    documents: int = Field(default=3, gt=0)
    document_tokens: int = Field(default=192, ge=8)
    repeat: float = Field(default=0.4, ge=0, lt=1)
    held_out: int = Field(default=8, ge=0)
    evaluate_rows: int = Field(default=32, gt=0)

    @field_validator("poolings")
    @classmethod
    def _some(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if not given or len(set(given)) < len(given):
            raise ValueError("poolings must name one or more different sizes")
        return given


@dataclass(frozen=True)
class LatentRow:
    """Documents by id with their windows of token ids, and the ids of what is asked and what is to be said."""

    names: tuple[str, ...]
    windows: list[list[int]]
    asked: list[int]
    said: list[int]


class Pooled(ActivationRecorder):
    """Pools K and V of the layers that read as a bank keeps them, with gradients: [C, 2, KV, D] by layer."""

    def __init__(self, reading: ContentConfig, mask: Tensor) -> None:
        """`mask` [B, T] of right-padded windows."""
        self.reading, self.mask = reading, mask
        self.offsets, self.chunks = chunk_offsets(mask.sum(1), reading.pooling)
        self.content: dict[int, Tensor] = {}

    def on_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """K and V [B, KV, T, D]."""
        if layer in self.reading.layers:
            parts = [states.transpose(1, 2)[self.mask] for states in (keys, values)]
            if self.reading.pooling > 1:
                parts = [*pool_chunks(parts, self.offsets.to(keys.device))]
            self.content[layer] = torch.stack(parts, dim=1)

    def done_at(self, layer: int) -> bool:
        """After the deepest layer that reads."""
        return layer == self.reading.layers[-1]


class Chosen:
    """The memory of a batch of rows: a head, and behind it what was pooled of each row's documents, by layer."""

    def __init__(self, head: TemplateHead, content: Sequence[Mapping[int, Tensor]]) -> None:
        """`content` [C, 2, KV, D] of each row by layer."""
        self._head, self._content = head, content

    def select(self, layer: int, queries: Tensor) -> None:
        """Nothing is selected here."""

    def context(self, layer: int) -> LayerContext:
        """The head alone where the layer does not read."""
        keys, values = (t[layer].clone() for t in (self._head.keys, self._head.values))
        return padded([with_head(keys, values, row.get(layer)) for row in self._content])


def pooled_content(
    backbone: Backbone, reading: ContentConfig, windows: Sequence[list[int]], batch_tokens: int, lora: Lora
) -> list[dict[int, Tensor]]:
    """What a bank would keep of each window [C, 2, KV, D] by layer, with gradients."""
    found: dict[int, dict[int, Tensor]] = {}
    for batch in plan_batches([len(window) for window in windows], batch_tokens):
        ids, mask = pad_right([windows[i] for i in batch], backbone.device)
        recorder = Pooled(reading, mask)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        backbone.forward(CausalRows(recorder=recorder, lora=lora), ids, mask, positions, logits="none")
        split = {layer: c.split_with_sizes(recorder.chunks.tolist()) for layer, c in recorder.content.items()}
        found |= {index: {layer: c[at] for layer, c in split.items()} for at, index in enumerate(batch)}
    return [found[i] for i in range(len(windows))]


def joined_content(windows: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    """The content of several windows, one after the other, by layer; nothing of none."""
    return {layer: torch.cat([one[layer] for one in windows]) for layer in (windows[0] if windows else ())}


def said_logits(
    backbone: Backbone, state: ForwardState, rows: Sequence[tuple[list[int], list[int]]], starts: Sequence[int]
) -> tuple[Tensor, int]:
    """Logits [N, V], float32, before every token that rows say, and the rows' tokens.

    A row is the ids of what is asked and of what is said, at positions from its place in `starts` on.
    """
    ids, mask = pad_right([asked + said for asked, said in rows], backbone.device)
    places = torch.zeros_like(mask)
    for number, (asked, said) in enumerate(rows):  # a token is told at the one before it
        places[number, len(asked) - 1 : len(asked) + len(said) - 1] = True
    columns = places.any(0).nonzero()[:, 0]
    positions = torch.tensor(starts, device=ids.device)[:, None] + torch.arange(ids.shape[1], device=ids.device)
    logits = backbone.forward(state, ids, mask, positions, logits=columns)
    assert logits is not None
    return logits[places[:, columns]].float(), int(mask.sum())


class ReadingObjective:
    """The objective: a LoRA that reads, above the router that `start` brings and the updates that it routes with."""

    def __init__(
        self,
        backbone: Backbone,
        config: ReadingConfig,
        data: Sequence[Corpus],
        seed: int = 0,
        adapter: Adapter | None = None,
    ) -> None:
        """Above the router of `adapter`, or of the one that the backbone has.

        Raises ConfigError for an adapter whose layers select for themselves, and for layers that do not fit;
        TrainingError for data without an answer.
        """
        start = find_adapter(backbone, adapter)
        routing = start.config.routing
        if routing.selection != "shared":
            raise ConfigError("this trains reading for adapters with one ranking; others read as they route: packed")
        last = backbone.spec.layers
        layers = tuple(range(routing.layers[-1] + 1, last)) if config.layers is None else config.layers
        if layers[-1] >= last:
            raise ConfigError(f"layers: {backbone.name} has no layer {layers[-1]}; it has {last}")
        if start.lora is not None and start.lora.deepest >= routing.layers[-1]:
            raise ConfigError("the adapter reads already: its LoRA reaches above the layers that routing needs")
        self.backbone, self.start, self.config, self.seed = backbone, start, config, seed
        self.reading = ContentConfig(layers=layers, pooling=config.poolings[0])
        training, self.held_out = held_apart(data, config.held_out, seed)
        self.training = [(corpus, step) for corpus, step in training if step.answer]
        self.held_out = [(corpus, step) for corpus, step in self.held_out if step.answer]
        if not self.training:
            raise TrainingError("the data hold no question with an answer and the passages it is in")
        backbone.model.requires_grad_(False)
        self._mine = LexicalNegatives(data) if config.documents > 1 else None
        generator = torch.Generator().manual_seed(seed)
        fresh = Lora.fresh(backbone.model, range(routing.layers[-1], last), config.rank, config.modules, generator)
        self._trained = fresh.trainable(backbone.device)
        below = {} if start.lora is None else start.lora.to(backbone.device, torch.float32).updates
        self.lora = Lora({**below, **self._trained.updates})
        frame = prompts.chat_frame(backbone.tokenizer)
        self._head = backbone.tokenize_pieces(frame.pieces)
        self._tail = backbone.tokenize_frame(frame.tail)
        self._prefix = [] if start.config.prefix is None else [backbone.special(start.config.prefix)]
        self._end = min(backbone.end_ids)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The updates that read."""
        return self._trained.tensors()

    def losses(self, batch: int) -> Losses:
        """Cross entropy of the answers, or of the repeated documents, of micro-batch `batch`."""
        draw = random.Random(f"{self.seed}/reading/{batch}")
        steps = next(batches(self.training, min(self.config.rows, len(self.training)), self.seed, first=batch))
        repeats = draw.random() < self.config.repeat
        rows = [self.row(corpus, step, draw, repeats=repeats) for corpus, step in steps]
        loss, tokens = self._loss(rows, self.config.poolings[batch % len(self.config.poolings)])
        return Losses(loss, {"repeat" if repeats else "answer": float(loss.detach())}, tokens)

    def evaluate(self) -> Mapping[str, float]:
        """Nats per answer token of held-out questions, by pooling."""
        steps, size = self.held_out[: self.config.evaluate_rows], self.config.rows
        found: dict[str, float] = {}
        for pooling in self.config.poolings if steps else ():
            draw, total, count = random.Random(f"{self.seed}/held"), 0.0, 0
            for first in range(0, len(steps), size):
                rows = [self.row(c, s, draw, repeats=False) for c, s in steps[first : first + size]]
                said = sum(len(row.said) for row in rows)
                with torch.no_grad():
                    total, count = total + said * float(self._loss(rows, pooling)[0]), count + said
            found[f"answer_nll/{pooling}"] = total / count
        return found

    def adapter(self, measured: Mapping[str, Any]) -> Adapter:
        """The adapter it began from, which now reads too."""
        lora = self.lora.detached()
        update = {
            "name": self.config.name,
            "reading": self.reading,
            "abilities": Abilities(**{**self.start.config.abilities.model_dump(), "read_latent": True}),
            "lora": lora.described(answers=True),
            "measured": dict(measured),
            "provenance": {},
        }
        return replace(self.start, config=self.start.config.model_copy(update=update), lora=lora)

    def _loss(self, rows: Sequence[LatentRow], pooling: int) -> tuple[Tensor, int]:
        """Mean cross entropy of what the rows say, and how many tokens went through the backbone for it."""
        logits, said, tokens = self.logits(rows, pooling)
        return F.cross_entropy(logits, torch.tensor(said, device=logits.device)), tokens

    def logits(self, rows: Sequence[LatentRow], pooling: int) -> tuple[Tensor, list[int], int]:
        """Logits [N, V] before every token that the rows say, those tokens, and backbone tokens in all."""
        head = encode_head(self.backbone, self._head, self.lora)
        windows = [window for row in rows for window in row.windows]
        reading = ContentConfig(layers=self.reading.layers, pooling=pooling)
        content = iter(pooled_content(self.backbone, reading, windows, _BATCH_TOKENS, self.lora))
        parts = [joined_content([next(content) for _ in row.windows]) for row in rows]
        state = ForwardState(source=Chosen(head, parts), lora=self.lora)
        starts = [head.length + self.start.config.top_k] * len(rows)
        logits, tokens = said_logits(self.backbone, state, [(row.asked, row.said) for row in rows], starts)
        said = [token for row in rows for token in row.said]
        return logits, said, sum(map(len, windows)) + head.length + tokens

    # Rows

    def row(self, corpus: Corpus, step: Hop, draw: random.Random, *, repeats: bool) -> LatentRow:
        """A question and its answer or, where it `repeats`, one of the documents by its title.

        Raises TrainingError for a step whose passages the corpus lacks.
        """
        names = self._documents(corpus, step, draw)
        windows = [self._window(corpus, name) for name in names]
        if not repeats:
            asked, said = prompts.question_part(step.question, briefly=True), self.backbone.tokenize(step.answer)
        else:
            place = draw.randrange(len(names))
            document = corpus.documents[names[place]]
            asked = prompts.repeat_part(document.title or " ".join(document.text.split()[:6]))
            said = windows[place][len(self._prefix) :]
        return LatentRow(tuple(names), windows, self.backbone.tokenize(asked) + self._tail, [*said, self._end])

    def _documents(self, corpus: Corpus, step: Hop, draw: random.Random) -> list[str]:
        """What the answer needs, and what looks like it, in random order."""
        if absent := [name for name in step.found if name not in corpus.documents]:
            raise TrainingError(f"{corpus.name}: {step.question!r} needs {absent[0]!r}, which its corpus lacks")
        names = list(step.found)
        room = draw.randint(0, max(self.config.documents - len(names), 0))
        if room and self._mine is not None:
            near = [n for n in self._mine(corpus, replace(step, found=())) if n not in names]
            names += draw.sample(near, min(room, len(near)))
        draw.shuffle(names)
        return names

    def _window(self, corpus: Corpus, name: str) -> list[int]:
        document = corpus.documents[name]
        ids = self.backbone.tokenize(prompts.document_text(document.title, document.text))
        return (self._prefix + ids)[: self.config.document_tokens]
