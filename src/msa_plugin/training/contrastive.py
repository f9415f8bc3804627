"""Contrastive training of an adapter that ranks once for all layers: documents and questions are read as in inference.

Every document of a group is encoded alone and every question for itself, by the code paths that fill and search a bank,
with gradients; a step's loss is the paper's equation 5 over the group's documents, plus the divergence from a teacher's
similarities. A step after the first asks as Memory Interleave does: its question's vector plus that of question and a
piece of what was found. Shapes: P documents, Q steps, C chunks, D routing-key width.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from msa_plugin import prompts
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.attention import CausalRows
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.cache import cache_dir
from msa_plugin.backbone.lora import TARGETS, Lora
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import InterleaveConfig
from msa_plugin.encoding.calibration import Calibration, CalibrationConfig
from msa_plugin.encoding.encoder import WindowRecorder, pad_right, plan_batches
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.ranking import RouteRecorder
from msa_plugin.training.data import Corpus
from msa_plugin.training.group_losses import GroupLosses, GroupScores, LossConfig
from msa_plugin.training.groups import Ask, Group, GroupConfig, Groups, Pool
from msa_plugin.training.teacher import Taught, load_teacher, mean_of, teach, turned
from msa_plugin.training.trainer import Losses

_LOG = logging.getLogger("msa_plugin.training")
_TOKENS = "token_weights"
_EVALUATION = 12  # groups
_TURNED = 1024  # passages, and as many questions, that say how the teacher's vectors are turned


class ContrastiveConfig(LossConfig):
    """What trains, on which groups, and the losses.

    LoRA of `rank` on `modules` of `layers` (None: all below the last routing layer; rank 0: none), the router's
    projections always, `train_token_weights` the weights tokens are pooled with. Documents are cut to
    `document_tokens`, prefix included. `pieces` of found documents make a later step's queries.
    `calibration` makes the router that training begins from when no adapter is given, from the training text.
    `teachers` are models as the benchmark's `dense:` names them (all-MiniLM-L6-v2 is `minilm`); of several the mean
    of their cosines counts.
    """

    calibration: CalibrationConfig = CalibrationConfig(passages=1000, questions=1000)
    teachers: tuple[str, ...] = ("minilm",)
    rank: int = Field(default=32, ge=0)
    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] = TARGETS
    train_token_weights: bool = True
    groups: GroupConfig = GroupConfig()
    document_tokens: int = Field(default=128, ge=8)
    batch_tokens: int = Field(default=1024, ge=8)
    pieces: int = Field(default=2, ge=1)


class Contrastive:
    """The objective for `Trainer`: router projections, token weights and LoRA of one adapter."""

    def __init__(
        self, backbone: Backbone, start: Adapter, pool: Pool, config: ContrastiveConfig, seed: int = 0
    ) -> None:
        """`start` is where training begins, a calibrated adapter for example.

        Raises ConfigError for an adapter that does not rank once for all layers by one vector a question.
        """
        routing = start.config.routing
        if routing.selection != "shared" or routing.query_reduce != "pooled" or routing.heads > 1:
            raise ConfigError("contrastive training is for adapters with one ranking and one vector a question")
        self.backbone, self.start, self.pool, self.config, self.seed = backbone, start, pool, config, seed
        self.groups = Groups(pool, config.groups, seed)
        self.prefix = [] if start.config.prefix is None else [backbone.special(start.config.prefix)]
        self._held = list(self.groups.evaluation(_EVALUATION))
        backbone.model.requires_grad_(False)
        self._router, weights = _leaves(start.router, backbone.device)
        self._log_weights = None if weights is None else weights.clamp(min=1e-8).log().requires_grad_()
        self._silent = None if weights is None else weights == 0
        self.lora = self._fresh_lora(seed)
        self._losses = GroupLosses(pool, config, self._target())

    def _fresh_lora(self, seed: int) -> Lora | None:
        c, last = self.config, self.start.config.routing.layers[-1]
        if self.start.lora is not None:
            begun = self.start.lora.to(self.backbone.device, torch.float32)
        elif c.rank == 0:
            return None
        else:
            layers = range(last) if c.layers is None else c.layers
            generator = torch.Generator().manual_seed(seed)
            begun = Lora.fresh(self.backbone.model, layers, c.rank, c.modules, generator).to(self.backbone.device)
        if begun.deepest >= last:
            raise ConfigError(f"LoRA of layer {begun.deepest} changes nothing before the last routing layer, {last}")
        return begun.trainable(self.backbone.device)

    def _target(self) -> Taught | None:
        """The teacher's vectors as `vectors` has them learnt: turned to where those of the router are now."""
        pool = self.pool
        if not self.config.vectors or pool.teacher is None:
            return None
        draw = random.Random(f"{self.seed}/turned")
        samples = [draw.sample(range(len(texts)), min(_TURNED, len(texts))) for texts in (pool.texts, pool.questions)]
        with torch.no_grad():
            begun = self.vectors([pool.texts[p] for p in samples[0]], [pool.questions[q] for q in samples[1]])
        return turned(pool.teacher, samples, begun)

    def vectors(self, passages: Sequence[str], questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit vectors of passages [P, D] and of questions [M, D] by the router as it is now."""
        router = self.router()
        with nullcontext() if self.lora is None else self.lora.added(self.backbone.model):
            keys, chunks = self._keys(self._rows(passages), router)
            asked = self._vectors([self.prefix + ids for ids in self.backbone.tokenize_batch(list(questions))], router)
        return _mean_keys(keys, _owner(chunks), len(passages)), F.normalize(asked, dim=1)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What trains, by its name in an adapter file; token weights as their logarithms."""
        found = {
            f"router.{index}.{part}": value
            for index, layer in self._router.layers.items()
            for part, value in vars(layer).items()
            if value is not None
        }
        if self._log_weights is not None and self.config.train_token_weights:
            found[_TOKENS] = self._log_weights
        return found | ({} if self.lora is None else self.lora.tensors())

    def router(self) -> Router:
        """The router as it is now, differentiable."""
        weights = None
        if self._log_weights is not None and self._silent is not None:
            weights = self._log_weights.exp().masked_fill(self._silent, 0.0)
        return Router(self._router.config, self._router.layers, weights)

    def losses(self, batch: int) -> Losses:
        """The loss of group `batch`."""
        group = self.groups.training(batch)
        scored = self.score(group, random.Random(f"{self.seed}/pieces/{batch}"))
        parts = self._losses.of(group, scored)
        total = torch.stack([getattr(self.config, name) * value for name, value in parts.items()]).sum()
        shown = {name: float(value.detach()) for name, value in parts.items()}
        return Losses(total, {**shown, "asks": float(len(group.asks))}, scored.tokens)

    def evaluate(self) -> Mapping[str, float]:
        """Recall within held-out groups: the share of a step's right passages among its best 1 and 5."""
        if not self._held:
            return {}
        found: dict[int, list[float]] = {1: [], 5: []}
        for number, group in enumerate(self._held):
            with torch.no_grad():
                scores = self.score(group, random.Random(f"{self.seed}/held/{number}")).scores
            for k, shares in found.items():
                best = scores.masked_fill(group.absent, -torch.inf).topk(min(k, scores.shape[1]), dim=1).indices
                hits = group.positives.gather(1, best).sum(1) / group.positives.sum(1).clamp(max=k)
                shares += hits.tolist()
        return {f"held_out_recall@{k}": sum(shares) / len(shares) for k, shares in found.items()}

    def adapter(self, measured: Mapping[str, Any]) -> Adapter:
        """What was trained so far."""
        router = self.router()
        layers = {
            i: RouterLayer(*(None if t is None else t.detach().clone() for t in _parts_of(layer)))  # type: ignore[arg-type]
            for i, layer in router.layers.items()
        }
        weights = None if router.token_weights is None else router.token_weights.detach().clone()
        lora = None if self.lora is None else self.lora.detached()
        name = f"{self.backbone.name} trained"
        config = self.start.config.model_copy(
            update={"name": name, "measured": dict(measured), "provenance": {}, "relevance": None}
        )
        return replace(self.start, config=config, router=Router(router.config, layers, weights), lora=lora)

    # Scores

    def score(self, group: Group, draw: random.Random) -> GroupScores:
        """Cosine of every step with every document of a group, best over a document's chunks and a step's pieces."""
        router = self.router()
        if self.lora is None:
            return self._score(group, router, draw)
        with self.lora.added(self.backbone.model):
            return self._score(group, router, draw)

    def _score(self, group: Group, router: Router, draw: random.Random) -> GroupScores:
        rows = self._rows([self.pool.texts[p] for p in group.passages])
        keys, chunks = self._keys(rows, router)
        questions, owners = self._queries(group.asks, draw)
        vectors = self._vectors(questions, router)
        asked = self._asked(vectors, owners)
        with torch.autocast(keys.device.type, enabled=False):  # a temperature would enlarge what bf16 rounds off
            products = asked.float() @ keys.float().T
        owner = _owner(chunks).to(keys.device)
        by_document = _best(products, owner, len(rows))
        scores = _best(by_document.T, torch.tensor(owners.step), len(group.asks)).T
        documents = _mean_keys(keys, owner, len(rows))
        asked = F.normalize(vectors[: owners.asked], dim=1)
        return GroupScores(scores, documents, asked, sum(map(len, rows)) + sum(map(len, questions)))

    def _rows(self, passages: Sequence[str]) -> list[list[int]]:
        tokenized = self.backbone.tokenize_batch(list(passages))
        return [(self.prefix + ids)[: self.config.document_tokens] for ids in tokenized]

    def _keys(self, rows: Sequence[list[int]], router: Router) -> tuple[Tensor, Tensor]:
        """Routing keys [C, D] of documents in their order, and the number of chunks of each [P]."""
        parts: dict[int, Tensor] = {}
        for batch in plan_batches([len(r) for r in rows], self.config.batch_tokens):
            ids, mask = pad_right([rows[i] for i in batch], self.backbone.device)
            recorder = WindowRecorder(router, None, ids, mask)
            self._run(recorder, ids, mask)
            keys = router.finish_keys(recorder.keys)["shared"]
            parts.update(zip(batch, keys.split_with_sizes(recorder.key_chunks.tolist()), strict=True))
        counts = torch.tensor([len(parts[i]) for i in range(len(rows))])
        return torch.cat([parts[i] for i in range(len(rows))]), counts

    def _vectors(self, rows: Sequence[list[int]], router: Router) -> Tensor:
        """Routing queries [N, D] of token rows."""
        batches = plan_batches([len(r) for r in rows], self.config.batch_tokens)
        parts = []
        for batch in batches:
            ids, mask = pad_right([rows[i] for i in batch], self.backbone.device)
            recorder = RouteRecorder(router, ids, mask)
            self._run(recorder, ids, mask)
            parts.append(router.shared_queries(recorder.parts)[0][:, 0, 0])
        order = torch.tensor([i for batch in batches for i in batch]).argsort()
        return torch.cat(parts)[order]

    def _run(self, recorder: WindowRecorder | RouteRecorder, ids: Tensor, mask: Tensor) -> None:
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        # The gradient of torch's fused attention on a CPU takes longer than that of plain products for rows this short.
        with sdpa_kernel(SDPBackend.MATH) if ids.device.type == "cpu" else nullcontext():
            self.backbone.forward(CausalRows(recorder=recorder), ids, mask, positions, logits="none")

    def _queries(self, asks: Sequence[Ask], draw: random.Random) -> tuple[list[list[int]], _Owners]:
        """Token rows of all questions, then of question and piece for steps after the first; whose query is which."""
        asked = list(dict.fromkeys(ask.question for ask in asks))
        place = {question: i for i, question in enumerate(asked)}
        texts = [self.pool.questions[q] for q in asked]
        step, question, follow = [], [], []
        for number, ask in enumerate(asks):
            pieces: list[str | None] = [*self._pieces(ask, draw)] or [None]
            for piece in pieces:
                step.append(number)
                question.append(place[ask.question])
                follow.append(-1 if piece is None else len(texts))
                if piece is not None:
                    texts.append(prompts.follow_up(self.pool.questions[ask.question], piece))
        rows = [self.prefix + ids for ids in self.backbone.tokenize_batch(texts)]
        return rows, _Owners(step, question, follow, len(asked))

    def _pieces(self, ask: Ask, draw: random.Random) -> list[str]:
        size = self.start.config.routing.pooling
        found = []
        for passage in ask.found:
            ids = self.backbone.tokenize(self.pool.texts[passage])
            found += [ids[at : at + size] for at in range(0, len(ids), size)]
        chosen = draw.sample(found, min(self.config.pieces, len(found)))
        return [self.backbone.detokenize(ids).strip("\ufffd") for ids in chosen]

    def _asked(self, vectors: Tensor, owners: _Owners) -> Tensor:
        """Vectors [S, D] of every query: the question's, or its sum with that of question and piece (Interleave)."""
        questions = vectors[torch.tensor(owners.question)]
        follow = torch.tensor(owners.follow)
        weight = InterleaveConfig().follow_weight * (follow >= 0)[:, None]
        return F.normalize(questions + weight * vectors[follow.clamp(min=0)], dim=1)


@dataclass(frozen=True)
class _Owners:
    """Of every query: its step, its question's vector, and the vector of question and piece (-1: there is none).

    The first `asked` vectors are those of questions, in the order in which steps name them first.
    """

    step: list[int]
    question: list[int]
    follow: list[int]
    asked: int


def _owner(chunks: Tensor) -> Tensor:
    """The document of each of C chunks, from the number of chunks of each of P documents."""
    return torch.repeat_interleave(torch.arange(len(chunks)), chunks)


def _mean_keys(keys: Tensor, owner: Tensor, count: int) -> Tensor:
    """Unit vectors [count, D] of documents: the sums of their keys [C, D]."""
    sums = keys.new_zeros(count, keys.shape[1]).index_add(0, owner.to(keys.device), keys)
    return F.normalize(sums, dim=1)


def _best(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """Maximum [N, count] over the columns of `values` [N, C] that belong to each owner."""
    out = values.new_full((values.shape[0], count), -torch.inf)
    return out.scatter_reduce(1, owners.to(values.device).expand(values.shape[0], -1), values, "amax")


def _parts_of(layer: RouterLayer) -> tuple[Tensor | None, ...]:
    return layer.q_weight, layer.k_weight, layer.q_bias, layer.k_bias


def _leaves(router: Router, device: torch.device) -> tuple[Router, Tensor | None]:
    """A float32 copy whose projections train, and the token weights."""

    def leaf(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().to(device, torch.float32).clone().requires_grad_()

    layers = {
        i: RouterLayer(*(leaf(t) for t in _parts_of(layer)))  # type: ignore[arg-type]
        for i, layer in router.layers.items()
    }
    weights = None if router.token_weights is None else router.token_weights.detach().to(device, torch.float32)
    return Router(router.config, layers, weights), weights


def contrastive_objective(
    backbone: Backbone, config: ContrastiveConfig, data: Sequence[Corpus], seed: int, adapter: Adapter | None = None
) -> Contrastive:
    """The objective over `data`, from `adapter` or a router calibrated on it; teacher vectors are kept in the cache.

    Raises TrainingError and ConfigError as `Pool` and `Contrastive`, MissingExtraError without the extra bench.
    """
    pool = Pool.of(data)
    if config.teacher or config.vectors:
        folder, device = cache_dir() / "teachers", str(backbone.device)
        taught = [teach(load_teacher(m, device), pool.texts, pool.questions, folder, _told) for m in config.teachers]
        pool.teacher = mean_of(taught)
    if adapter is None:
        draw = random.Random(seed)
        passages, questions = (draw.sample(texts, len(texts)) for texts in (pool.texts, pool.questions))
        adapter = Calibration(backbone, config.calibration).run(passages, questions)
    return Contrastive(backbone, adapter, pool, config, seed)


def brief(config: ContrastiveConfig) -> ContrastiveConfig:
    """Without the teacher, whose vectors of all passages come first, and calibrated on few of them."""
    few = config.calibration.model_copy(update={"passages": 64, "questions": 64})
    return config.model_copy(update={"teacher": 0.0, "vectors": 0.0, "calibration": few})


def _told(done: int, total: int) -> None:
    """Embedding comes before the steps that a progress bar counts."""
    _LOG.info("the teacher has embedded %d of %d texts", done, total)
