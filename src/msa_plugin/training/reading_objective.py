"""Teaching the backbone to read pooled K, V: LoRA above the router, the language-model loss through what banks keep.

Rows are those of `reading="latent"`: the frame's head before all, every document alone at positions from 0, and after
them question and answer, which see the documents' pooled chunks in the layers that read. Which documents are read is
given: an adapter that ranks once for all layers has chosen before it reads. Besides answers, documents are repeated
word for word from their chunks (as in arXiv 2307.06945): an answer has five tokens to learn from, a document a hundred.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import TARGETS, Lora, Update
from msa_plugin.config import Abilities, ContentConfig, Layers, Settings, Size
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.engine.assembly import TemplateHead, encode_head
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.training.data import Corpus, Step, batches, held_apart
from msa_plugin.training.losses import IGNORED, token_loss
from msa_plugin.training.packed import QUESTION, RESPONSE, Packed, PackedRows
from msa_plugin.training.samples import Batch, Lexical, Sample
from msa_plugin.training.trainer import Losses


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


class ReadingPass(PackedRows):
    """Packed rows that read all their documents, after a head that every row shares and no gradient reaches."""

    def __init__(self, packed: Packed, reading: ContentConfig, lora: Lora, head: TemplateHead) -> None:
        """`head` comes from a forward with the same `lora`."""
        super().__init__(packed, reading, lora, None)
        self.head = head
        width = int(packed.counts.max()) + 1
        self._all = packed.ids.new_ones((len(packed.ids), width), dtype=torch.bool)

    def chosen(self, layer: int) -> Tensor:
        """All of them."""
        return self._all

    def assemble(
        self, layer: int, key: Tensor, value: Tensor, window: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `PackedRows`, behind the head's K and V, which no document sees."""
        keys, values, mask = super().assemble(layer, key, value, window)
        assert mask is not None
        rows = len(key)
        head = [
            t.to(key.device, key.dtype).clone().expand(rows, -1, -1, -1)
            for t in (self.head.keys[layer], self.head.values[layer])
        ]
        outside = (self.packed.owners == 0)[:, None, :, None].expand(-1, -1, -1, head[0].shape[2])
        return torch.cat([head[0], keys], dim=2), torch.cat([head[1], values], dim=2), torch.cat([outside, mask], dim=3)


class ReadingObjective:
    """The objective: a LoRA that reads, above the router that `start` brings and the updates that it routes with."""

    def __init__(
        self, backbone: Backbone, start: Adapter, config: ReadingConfig, data: Sequence[Corpus], seed: int = 0
    ) -> None:
        """Raises ConfigError for an adapter whose layers select for themselves, and for layers that do not fit.

        Raises TrainingError for data without an answer, MissingExtraError without the extra lexical.
        """
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
        self._mine = Lexical(data) if config.documents > 1 else None
        generator = torch.Generator().manual_seed(seed)
        fresh = Lora.fresh(backbone.model, range(routing.layers[-1], last), config.rank, config.modules, generator)
        self._trained = fresh.to(backbone.device)
        for update in self._trained.updates.values():
            update.down.requires_grad_()
            update.up.requires_grad_()
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
        return {
            f"lora.{layer}.{module}.{part}": getattr(update, part)
            for (layer, module), update in self._trained.updates.items()
            for part in ("down", "up")
        }

    def losses(self, batch: int) -> Losses:
        """Cross entropy of the answers, or of the repeated documents, of micro-batch `batch`."""
        draw = random.Random(f"{self.seed}/reading/{batch}")
        steps = next(batches(self.training, min(self.config.rows, len(self.training)), self.seed, first=batch))
        repeats = draw.random() < self.config.repeat
        samples = [self.sample(corpus, step, draw, repeats=repeats) for corpus, step in steps]
        made = Batch.of(samples, self.backbone.device)
        loss = self._loss(made, self.config.poolings[batch % len(self.config.poolings)])
        return Losses(loss, {"repeat" if repeats else "answer": float(loss.detach())}, int(made.packed.mask.sum()))

    def evaluate(self) -> Mapping[str, float]:
        """Nats per answer token of held-out questions, by pooling."""
        steps, size = self.held_out[: self.config.evaluate_rows], self.config.rows
        found: dict[str, float] = {}
        for pooling in self.config.poolings if steps else ():
            draw, total, count = random.Random(f"{self.seed}/held"), 0.0, 0
            for first in range(0, len(steps), size):
                samples = [self.sample(c, s, draw, repeats=False) for c, s in steps[first : first + size]]
                made = Batch.of(samples, self.backbone.device)
                tokens = int((made.labels != IGNORED).sum())
                with torch.no_grad():
                    total += tokens * float(self._loss(made, pooling))
                count += tokens
            found[f"answer_nll/{pooling}"] = total / count
        return found

    def adapter(self, measured: Mapping[str, Any]) -> Adapter:
        """The adapter it began from, which now reads too."""
        lora = Lora({w: Update(u.down.detach().cpu().clone(), u.up.detach().cpu().clone()) for w, u in self._updates()})
        update = {
            "name": self.config.name,
            "reading": self.reading,
            "abilities": Abilities(**{**self.start.config.abilities.model_dump(), "read_latent": True}),
            "lora": lora.described(answers=True),
            "measured": dict(measured),
            "provenance": {},
        }
        return replace(self.start, config=self.start.config.model_copy(update=update), lora=lora)

    def _updates(self) -> Sequence[tuple[tuple[int, str], Update]]:
        return list(self.lora.updates.items())

    def _loss(self, made: Batch, pooling: int) -> Tensor:
        p = made.packed
        reading = ContentConfig(layers=self.reading.layers, pooling=pooling)
        head = encode_head(self.backbone, self._head, self.lora)
        state = ReadingPass(p, reading, self.lora, head)
        logits = self.backbone.forward(state, p.ids, p.mask, p.positions, logits=made.columns)
        assert logits is not None
        return token_loss(logits, made.labels[:, made.columns + 1])

    # Rows

    def sample(self, corpus: Corpus, step: Step, draw: random.Random, *, repeats: bool) -> Sample:
        """The row of a question and its answer or, where it `repeats`, of one of its documents by title.

        Raises TrainingError for a step whose passages the corpus lacks.
        """
        names = self._documents(corpus, step, draw)
        windows = [self._window(corpus, name) for name in names]
        ids = [t for window in windows for t in window]
        positions = [at for window in windows for at in range(len(window))]
        owners = [place for place, window in enumerate(windows, 1) for _ in window]
        asked, said = self._exchange(corpus, step, draw.randrange(len(names)) if repeats else None, names, windows)
        start = len(self._head) + self.start.config.top_k
        positions += range(start, start + len(asked) + len(said))
        labels = [IGNORED] * (len(ids) + len(asked)) + said
        owners += [QUESTION] * len(asked) + [RESPONSE] * len(said)
        return Sample([*ids, *asked, *said], positions, owners, labels, [n in step.found for n in names])

    def _documents(self, corpus: Corpus, step: Step, draw: random.Random) -> list[str]:
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

    def _exchange(
        self, corpus: Corpus, step: Step, repeated: int | None, names: Sequence[str], windows: Sequence[list[int]]
    ) -> tuple[list[int], list[int]]:
        """What is asked, with the frame's end, and what is to be said."""
        if repeated is None:
            asked, said = prompts.question_part(step.question, briefly=True), self.backbone.tokenize(step.answer)
        else:
            document = corpus.documents[names[repeated]]
            opening = document.title or " ".join(document.text.split()[:6])
            asked, said = prompts.repeat_part(opening), windows[repeated][len(self._prefix) :]
        return self.backbone.tokenize(asked) + self._tail, [*said, self._end]


def reading_objective(
    backbone: Backbone, config: ReadingConfig, data: Sequence[Corpus], seed: int, adapter: Adapter | None = None
) -> ReadingObjective:
    """`ReadingObjective` as recipes make it: without an `adapter`, above the one that this backbone has."""
    return ReadingObjective(backbone, adapter or find_adapter(backbone, None), config, data, seed)
