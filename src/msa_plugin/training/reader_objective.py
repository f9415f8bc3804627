"""Teaching the backbone to answer from documents in its prompt: a LoRA beside the router, which stays as it is.

Rows are what `reading="text"` computes: the frame, passages, the question; the loss is on the answer and on the token
that ends the turn. Routing and what banks keep do not change, so banks stay valid. Shapes: B rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from msa_plugin import prompts
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.attention import CausalRows, Pass
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import TARGETS, Lora, Update
from msa_plugin.bench.metrics import exact_match, f1
from msa_plugin.config import Abilities, GenerationConfig, Layers, Settings
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.engine.encoder import pad_left, pad_right
from msa_plugin.engine.generate import TextStream, decode
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.training.data import Corpus, held_apart
from msa_plugin.training.losses import IGNORED
from msa_plugin.training.reader_rows import Row, RowBuilder, RowConfig
from msa_plugin.training.trainer import Losses

_SHARED = 8  # micro-batches drawn together and sorted by length, so that rows of a micro-batch need little padding
_ANSWER_TOKENS = 32


class ReaderConfig(Settings):
    """What trains, and on what rows.

    LoRA of `rank` on `modules` of `layers` (None: all but the lowest quarter, which say little about answers) trains.
    A micro-batch has `rows` rows, made as `made` says. `held_out` questions of each data set are kept aside;
    `evaluate` answers at most `evaluate_rows` rows of them, cut at the same places every time.
    """

    layers: Layers | None = None
    rank: int = Field(default=16, gt=0)
    modules: tuple[str, ...] = TARGETS
    rows: int = Field(default=8, gt=0)
    made: RowConfig = RowConfig()
    held_out: int = Field(default=30, ge=0)
    evaluate_rows: int = Field(default=96, gt=0)


class ReaderObjective:
    """The objective: a LoRA that answers, beside an adapter's router."""

    def __init__(
        self, backbone: Backbone, start: Adapter, config: ReaderConfig, data: Sequence[Corpus], seed: int = 0
    ) -> None:
        """Training begins from the reader of `start` where it has one, whose layers and rank then count.

        Raises ConfigError for layers that the backbone lacks, TrainingError for data without an answer.
        """
        layers = _upper(backbone) if config.layers is None else config.layers
        if layers[-1] >= backbone.spec.layers:
            raise ConfigError(f"layers: {backbone.name} has no layer {layers[-1]}; it has {backbone.spec.layers}")
        self.backbone, self.start, self.config, self.seed = backbone, start, config, seed
        training, aside = held_apart(data, config.held_out, seed)
        self.training = [(corpus, step) for corpus, step in training if step.answer]
        if not self.training:
            raise TrainingError("the data hold no question with an answer and the passages it is in")
        backbone.model.requires_grad_(False)
        if start.reader is None:
            generator = torch.Generator().manual_seed(seed)
            begun = Lora.fresh(backbone.model, layers, config.rank, config.modules, generator)
        else:
            begun = start.reader.to(backbone.device, torch.float32)
        self.lora = begun.to(backbone.device)
        for update in self.lora.updates.values():
            update.down.requires_grad_()
            update.up.requires_grad_()
        self.rows = RowBuilder(data, config.made)
        frame = prompts.reader_frame(backbone.tokenizer)
        self._head, self._tail = backbone.tokenize_pieces(frame.pieces), backbone.tokenize_frame(frame.tail)
        self._end = min(backbone.end_ids)
        draw = random.Random(f"{seed}/held")
        asked = [(corpus, step) for corpus, step in aside if step.answer]
        self.held_out = self.rows.drawn(asked, config.evaluate_rows, draw) if asked else []
        self._drawn: tuple[int, list[tuple[list[int], list[int]]]] = (-1, [])

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The updates."""
        return {
            f"lora.{layer}.{module}.{part}": getattr(update, part)
            for (layer, module), update in self.lora.updates.items()
            for part in ("down", "up")
        }

    def losses(self, batch: int) -> Losses:
        """Cross entropy of the answers of micro-batch `batch`."""
        rows = self._rows(batch)
        ids, mask = pad_right([asked + said for asked, said in rows], self.backbone.device)
        labels = torch.full_like(ids, IGNORED)
        for number, (asked, said) in enumerate(rows):  # at the place before the token
            labels[number, len(asked) - 1 : len(asked) + len(said) - 1] = torch.tensor(said, device=ids.device)
        columns = (labels != IGNORED).any(0).nonzero()[:, 0]
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        logits = self.backbone.forward(CausalRows(lora=self.lora), ids, mask, positions, logits=columns)
        assert logits is not None
        with torch.autocast(ids.device.type, enabled=False):
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels[:, columns].flatten(), ignore_index=IGNORED)
        return Losses(loss, {"answer": float(loss.detach())}, int(mask.sum()))

    def evaluate(self) -> Mapping[str, float]:
        """Held-out rows, answered: f1 and exact match where the answer is there, and who says that it is not."""
        if not self.held_out:
            return {}
        replies = self.answers(self.held_out)
        found: dict[str, list[float]] = {"f1": [], "em": [], "absent_said": [], "absent_wrong": []}
        for row, reply in zip(self.held_out, replies, strict=True):
            said = exact_match(reply, [prompts.ABSENT])
            found["absent_said" if row.absent else "absent_wrong"].append(said)
            if not row.absent:
                found["f1"].append(f1(reply, [row.answer]))
                found["em"].append(exact_match(reply, [row.answer]))
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    def answers(self, rows: Sequence[Row]) -> list[str]:
        """What the backbone answers now, greedily."""
        replies = [""] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i].passages)))
        config = GenerationConfig(max_new_tokens=_ANSWER_TOKENS)
        for first in range(0, len(order), self.config.rows):
            some = order[first : first + self.config.rows]
            ids, mask = pad_left([self._tokens(rows[i])[0] for i in some], self.backbone.device)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            state = Pass(keep_cache=True, lora=self.lora)
            logits = self.backbone.run(state, ids, mask, positions)
            assert logits is not None
            streams = [TextStream(self.backbone, ()) for _ in some]
            for _ in decode(self.backbone, state, logits[:, -1], positions[:, -1] + 1, streams, config):
                pass
            for index, stream in zip(some, streams, strict=True):
                replies[index] = stream.text
        return replies

    def adapter(self, measured: Mapping[str, Any]) -> Adapter:
        """The adapter it began from, which now answers too."""
        updates = self.lora.updates.items()
        reader = Lora({w: Update(u.down.detach().cpu().clone(), u.up.detach().cpu().clone()) for w, u in updates})
        abilities = Abilities(**{**self.start.config.abilities.model_dump(), "answer": True})
        before = self.start.config
        router = before.provenance.get("router", {**before.provenance, "measured": dict(before.measured)})
        update = {
            "abilities": abilities,
            "reader": reader.described(),
            "measured": dict(measured),
            "provenance": {"router": router},
        }
        return replace(self.start, config=self.start.config.model_copy(update=update), reader=reader)

    def _rows(self, batch: int) -> list[tuple[list[int], list[int]]]:
        """Token ids of what is asked and said, of micro-batch `batch`: one of several that were drawn together."""
        group, place = divmod(batch, _SHARED)
        if self._drawn[0] != group:
            draw = random.Random(f"{self.seed}/reader/{group}")
            rows = self.rows.drawn(self.training, self.config.rows * _SHARED, draw)
            tokens = sorted((self._tokens(row) for row in rows), key=lambda pair: len(pair[0]) + len(pair[1]))
            order = draw.sample(range(_SHARED), _SHARED)
            self._drawn = (
                group,
                [pair for part in order for pair in tokens[part * self.config.rows : (part + 1) * self.config.rows]],
            )
        return self._drawn[1][place * self.config.rows : (place + 1) * self.config.rows]

    def _tokens(self, row: Row) -> tuple[list[int], list[int]]:
        """As `Reader` feeds them: frame, passages, question; then the answer and the end of the turn."""
        parts = [*prompts.reading_parts(row.passages), prompts.question_part(row.question), row.answer]
        *asked, said = self.backbone.tokenize_batch(parts)
        return [*self._head, *(t for part in asked for t in part), *self._tail], [*said, self._end]


def _upper(backbone: Backbone) -> tuple[int, ...]:
    return tuple(range(backbone.spec.layers // 4, backbone.spec.layers))


def reader_objective(
    backbone: Backbone, config: ReaderConfig, data: Sequence[Corpus], seed: int, adapter: Adapter | None = None
) -> ReaderObjective:
    """The objective over `data`, beside `adapter` or the one that the backbone has."""
    return ReaderObjective(backbone, find_adapter(backbone, adapter), config, data, seed)
