"""Teaching the backbone to answer from documents in its prompt: a LoRA beside the router, which stays as it is.

Rows are what `reading="text"` computes: the frame, passages, the question; the loss is on the answer and on the token
that ends the turn. A share of them is what `reading="kv"` computes, taught by the same model reading text. Routing does
not change, so banks stay valid, but for those that keep K, V. Shapes: N answer tokens, V vocabulary, C tokens stored.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from msa_plugin import prompts
from msa_plugin.answering.decoding import TextStream, decode
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.attention import CausalRows, ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.families import shift_keys
from msa_plugin.backbone.lora import TARGETS, Lora
from msa_plugin.config import Abilities, ContentConfig, GenerationConfig, Layers, Settings
from msa_plugin.encoding.encoder import pad_left
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.measuring.metrics import exact_match, f1
from msa_plugin.retrieval.assembly import encode_head
from msa_plugin.training.data import Corpus, held_apart
from msa_plugin.training.reader_rows import ReaderRow, RowBuilder, RowConfig
from msa_plugin.training.reading_objective import Chosen, joined_content, pooled_content, said_logits
from msa_plugin.training.trainer import Losses

_SHARED = 8  # micro-batches drawn together and sorted by length, so that rows of a micro-batch need little padding
_ANSWER_TOKENS = 32
_BATCH_TOKENS = 2048  # of passages in a forward


class ReaderConfig(Settings):
    """What trains, and on what rows.

    LoRA of `rank` on `modules` of `layers` (None: all but the lowest quarter, which say little about answers) trains.
    A micro-batch has `rows` rows, made as `made` says. A share `kv` of them reads stored K, V of passages that were
    encoded alone, and is pulled towards what the same model says when it reads their text, with weight `distil`.
    `held_out` questions of each data set are kept aside; `evaluate` answers at most `evaluate_rows` rows of them, cut
    at the same places every time.
    """

    layers: Layers | None = None
    rank: int = Field(default=16, gt=0)
    modules: tuple[str, ...] = TARGETS
    rows: int = Field(default=8, gt=0)
    made: RowConfig = RowConfig()
    kv: float = Field(default=0.0, ge=0, lt=1)
    distil: float = Field(default=0.5, ge=0)
    held_out: int = Field(default=30, ge=0)
    evaluate_rows: int = Field(default=96, gt=0)


@dataclass(frozen=True)
class TokenRow:
    """A row's token ids: passages as a prompt shows them and as a bank encodes them, the question, the answer."""

    passages: list[list[int]]
    windows: list[list[int]]
    asked: list[int]
    said: list[int]

    @property
    def length(self) -> int:
        """Tokens in all, of a row that reads text."""
        return sum(map(len, self.passages)) + len(self.asked) + len(self.said)


class ReaderObjective:
    """The objective: a LoRA that answers, beside an adapter's router."""

    def __init__(
        self,
        backbone: Backbone,
        config: ReaderConfig,
        data: Sequence[Corpus],
        seed: int = 0,
        adapter: Adapter | None = None,
    ) -> None:
        """Beside `adapter`, or the one that the backbone has; from its reader on, whose layers and rank then count.

        Raises ConfigError for layers that the backbone lacks, TrainingError for data without an answer.
        """
        start, depth = find_adapter(backbone, adapter), backbone.spec.layers
        layers = tuple(range(depth // 4, depth)) if config.layers is None else config.layers
        if layers[-1] >= depth:
            raise ConfigError(f"layers: {backbone.name} has no layer {layers[-1]}; it has {depth}")
        self.backbone, self.start, self.config, self.seed = backbone, start, config, seed
        training, aside = held_apart(data, config.held_out, seed)
        self.training = [(corpus, step) for corpus, step in training if step.answer]
        if not self.training:
            raise TrainingError("the data hold no question with an answer and the passages it is in")
        backbone.model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        begun = start.reader or Lora.fresh(backbone.model, layers, config.rank, config.modules, generator)
        self.lora = begun.trainable(backbone.device)
        self.rows = RowBuilder(data, config.made)
        frame = prompts.reader_frame(backbone.tokenizer)
        self._head, self._tail = backbone.tokenize_pieces(frame.pieces), backbone.tokenize_frame(frame.tail)
        self._end = min(backbone.end_ids)
        draw = random.Random(f"{seed}/held")
        asked = [(corpus, step) for corpus, step in aside if step.answer]
        self.held_out = self.rows.drawn(asked, config.evaluate_rows, draw) if asked else []
        self._prefix = [] if start.config.prefix is None else [backbone.special(start.config.prefix)]
        self._drawn: tuple[int, list[TokenRow]] = (-1, [])

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The updates."""
        return self.lora.tensors()

    def losses(self, batch: int) -> Losses:
        """Cross entropy of the answers of micro-batch `batch`; from stored K, V also the distance to reading text."""
        rows = self._rows(batch)
        said = torch.tensor([t for row in rows for t in row.said], device=self.backbone.device)
        if random.Random(f"{self.seed}/kv/{batch}").random() >= self.config.kv:
            logits, tokens = self.read(rows)
            loss = F.cross_entropy(logits, said)
            return Losses(loss, {"answer": float(loss.detach())}, tokens)
        with torch.no_grad():
            teacher, shown = self.read(rows)
        logits, tokens = self.read_stored(rows)
        loss = F.cross_entropy(logits, said)
        apart = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
        parts = {"answer_kv": float(loss.detach()), "apart": float(apart.detach())}
        return Losses(loss + self.config.distil * apart, parts, tokens + shown)

    def read(self, rows: Sequence[TokenRow]) -> tuple[Tensor, int]:
        """Logits [N, V], float32, before every token that the rows say, passages in the prompt; and tokens in all."""
        both = [(self._shown(row), row.said) for row in rows]
        return said_logits(self.backbone, CausalRows(lora=self.lora), both, [0] * len(rows))

    def _shown(self, row: TokenRow) -> list[int]:
        return [*self._head, *(t for p in row.passages for t in p), *row.asked]

    def read_stored(self, rows: Sequence[TokenRow]) -> tuple[Tensor, int]:
        """The same where K and V of every passage were made alone, as `reading="kv"` lays them out behind the head."""
        head = encode_head(self.backbone, self._head, self.lora)
        windows = [self._prefix + window for row in rows for window in row.windows]
        every = ContentConfig(layers=tuple(range(self.backbone.spec.layers)), pooling=1)
        stored = pooled_content(self.backbone, every, windows, _BATCH_TOKENS, self.lora)
        content = iter(zip(stored, map(len, windows), strict=True))
        parts, starts = [], []
        for row in rows:
            own, at = [], head.length
            for kept, length in (next(content) for _ in row.windows):
                own.append(self._moved(kept, at))
                at += length
            starts.append(at)
            parts.append(joined_content(own))
        state = ForwardState(source=Chosen(head, parts), lora=self.lora)
        logits, tokens = said_logits(self.backbone, state, [(row.asked, row.said) for row in rows], starts)
        return logits, sum(map(len, windows)) + head.length + tokens

    def _moved(self, content: Mapping[int, Tensor], by: int) -> dict[int, Tensor]:
        """K and V [C, 2, KV, D] by layer, `by` positions further on."""
        return {
            layer: torch.stack([shift_keys(self.backbone.model, layer, c[:, 0], by), c[:, 1]], dim=1)
            for layer, c in content.items()
        }

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

    def answers(self, rows: Sequence[ReaderRow]) -> list[str]:
        """What the backbone answers now, greedily."""
        replies = [""] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i].passages)))
        config = GenerationConfig(max_new_tokens=_ANSWER_TOKENS)
        for first in range(0, len(order), self.config.rows):
            some = order[first : first + self.config.rows]
            ids, mask = pad_left([self._shown(self.tokens(rows[i])) for i in some], self.backbone.device)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            state = ForwardState(keep_cache=True, lora=self.lora)
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
        reader = self.lora.detached()
        learnt = {"answer": True, "read_kv": self.config.kv > 0}
        abilities = Abilities(**{**self.start.config.abilities.model_dump(), **learnt})
        before = self.start.config
        router = before.provenance.get("router", {**before.provenance, "measured": dict(before.measured)})
        update = {
            "abilities": abilities,
            "reader": reader.described(),
            "measured": dict(measured),
            "provenance": {"router": router},
        }
        return replace(self.start, config=self.start.config.model_copy(update=update), reader=reader)

    def _rows(self, batch: int) -> list[TokenRow]:
        """The rows of micro-batch `batch`: of several that are drawn together, those of like length."""
        group, place = divmod(batch, _SHARED)
        size = self.config.rows
        if self._drawn[0] != group:
            draw = random.Random(f"{self.seed}/reader/{group}")
            rows = [self.tokens(row) for row in self.rows.drawn(self.training, size * _SHARED, draw)]
            rows.sort(key=lambda row: row.length)
            order = draw.sample(range(_SHARED), _SHARED)
            self._drawn = group, [row for part in order for row in rows[part * size : (part + 1) * size]]
        return self._drawn[1][place * size : (place + 1) * size]

    def tokens(self, row: ReaderRow) -> TokenRow:
        """Token ids, as `Reader` feeds them."""
        tokenize = self.backbone.tokenize_batch
        passages = tokenize(prompts.reading_parts(row.passages)) if row.passages else []
        windows = tokenize(list(row.passages)) if row.passages and self.config.kv else []
        asked, said = tokenize([prompts.question_part(row.question), row.answer])
        return TokenRow(passages, windows, asked + self._tail, [*said, self._end])
