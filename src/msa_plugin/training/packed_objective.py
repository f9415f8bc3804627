"""End-to-end training of an adapter whose router layers select for themselves: language model and routing in one row.

The loss is `lm` times the response's cross entropy plus `aux` times the routing loss (paper section 3.4): the first
teaches to name documents and to answer from pooled K and V, the second to find them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.backbone.lora import TARGETS, Lora
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import (
    Abilities,
    ChunkReduce,
    ContentConfig,
    HeadReduce,
    Layers,
    QueryReduce,
    RoutingConfig,
    Settings,
    Size,
)
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.training.data import Corpus, batches, held_apart
from msa_plugin.training.losses import Method, auxiliary_loss, token_loss
from msa_plugin.training.packed import PackedPass
from msa_plugin.training.samples import Batch, LexicalNegatives, Sampler
from msa_plugin.training.trainer import Losses

_BACKBONE = "backbone."


class PackedConfig(Settings):
    """The adapter to be trained, what of it trains, its samples, and how the two losses are mixed.

    `layers` route (None: the latter half), their keys and the K, V that they read pooled over `pooling` tokens. Router
    projections always train; besides, LoRA of `rank` on `modules` of `lora_layers` (None: from the first that routes),
    or everything. A new router starts from the attention's own projections, or at random. `rows` samples make a
    micro-batch; for `memory_tokens`, `window`, `hard` and `latent` see `Sampler`. `held_out` questions of each data set
    are kept aside for `evaluate`, which takes at most `evaluate_rows` of their steps. `abilities` are what the adapter
    will claim.
    """

    name: str = "packed"
    layers: Layers | None = None
    pooling: Size = 64
    top_k: Size = 16
    head_reduce: HeadReduce = "mean"
    query_reduce: QueryReduce = "max"
    chunk_reduce: ChunkReduce = "max"
    id_width: int = Field(default=6, gt=0, le=18)
    trains: Literal["router", "lora", "all"] = "lora"
    rank: int = Field(default=16, gt=0)
    lora_layers: Layers | None = None
    modules: tuple[str, ...] = TARGETS
    start: Literal["attention", "random"] = "attention"
    lm: float = Field(default=1.0, ge=0)
    aux: float = Field(default=0.1, ge=0)
    method: Method = "INFONCE_DECOUPLE"
    temperature: float = Field(default=0.1, gt=0)
    rows: int = Field(default=4, gt=0)
    memory_tokens: int = Field(default=8192, ge=64)
    window: int = Field(default=1024, ge=32)
    hard: int = Field(default=4, ge=0)
    latent: float = Field(default=0.0, ge=0, le=1)
    held_out: int = Field(default=0, ge=0)
    evaluate_rows: int = Field(default=32, gt=0)
    abilities: Abilities = Abilities()


class PackedObjective:
    """The objective of packed rows over one backbone, which it leaves as it is unless everything trains."""

    def __init__(
        self,
        backbone: Backbone,
        config: PackedConfig,
        data: Sequence[Corpus],
        seed: int = 0,
        adapter: Adapter | None = None,
    ) -> None:
        """`adapter` is where training begins.

        Raises ConfigError for an adapter of another shape or a backbone whose tokenizer lacks the markers, and
        TrainingError for data without a step.
        """
        self.backbone, self.config, self.seed = backbone, config, seed
        self.routing = _routing(backbone, config)
        self.reading = ContentConfig(layers=self.routing.layers, pooling=config.pooling)
        self.training, self.held_out = held_apart(data, config.held_out, seed)
        if not self.training:
            raise TrainingError("the data hold no step to train on; give data sets with questions and gold passages")
        backbone.model.requires_grad_(False)
        self.router = _router(backbone, self.routing, config.start, adapter, seed)
        self.lora = _lora(backbone, config, adapter, seed) if config.trains == "lora" else None
        if config.trains == "all":
            backbone.model.float().requires_grad_(True)
        self.sampler = Sampler(
            *(backbone, config.top_k, config.id_width, config.memory_tokens, config.window, config.hard, config.latent),
            miners=[LexicalNegatives(data)] if config.hard else [],
        )

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """Router projections, and LoRA or the backbone's own weights."""
        found = {
            f"router.{index}.{part}": getattr(layer, part)
            for index, layer in self.router.layers.items()
            for part in ("q_weight", "k_weight")
        }
        if self.lora is not None:
            found |= self.lora.tensors()
        if self.config.trains == "all":
            found |= {_BACKBONE + name: weight for name, weight in self.backbone.model.named_parameters()}
        return found

    def losses(self, batch: int) -> Losses:
        """Of the rows of micro-batch `batch`: language model on the response, routing in every router layer."""
        size = min(self.config.rows, len(self.training))
        steps = next(batches(self.training, size, self.seed, first=batch))
        samples = self.sampler.samples(steps, random.Random(f"{self.seed}/samples/{batch}"))
        made = Batch.of(samples, self.backbone.device)
        state, lm = self._forward(made)
        aux = auxiliary_loss(state.scores, made.positives, self.config.method, temperature=self.config.temperature)
        parts = {"lm": float(lm.detach()), "aux": float(aux.detach()), "recall": _recall(state, made.positives)}
        return Losses(self.config.lm * lm + self.config.aux * aux, parts, int(made.packed.mask.sum()))

    def evaluate(self) -> Mapping[str, float]:
        """On held-out steps: `lm`, mean cross entropy; `recall`, the share of right documents that layers select."""
        steps, size = self.held_out[: self.config.evaluate_rows], self.config.rows
        found: list[tuple[float, float, int]] = []
        for number, first in enumerate(range(0, len(steps), size)):
            some = steps[first : first + size]
            samples = self.sampler.samples(some, random.Random(f"{self.seed}/held/{number}"))
            made = Batch.of(samples, self.backbone.device)
            with torch.no_grad():
                state, lm = self._forward(made)
            found.append((float(lm), _recall(state, made.positives), len(some)))
        rows = sum(count for *_, count in found)
        names = ("lm", "recall") if rows else ()
        return {name: sum(f[i] * f[2] for f in found) / rows for i, name in enumerate(names)}

    def adapter(self, measured: Mapping[str, Any]) -> Adapter:
        """Router and LoRA as they are now."""
        layers = {i: layer.each(lambda t: t.detach().cpu().clone()) for i, layer in self.router.layers.items()}
        lora = None if self.lora is None else self.lora.detached()
        config = AdapterConfig(
            name=self.config.name,
            backbone=self.backbone.weights_hash(),
            tokenizer=self.backbone.tokenizer_hash(),
            hidden=self.backbone.spec.hidden,
            routing=self.routing,
            reading=self.reading,
            abilities=self.config.abilities,
            top_k=self.config.top_k,
            numbered=True,
            id_width=self.config.id_width,
            lora=None if lora is None else lora.described(answers=True),
            measured=dict(measured),
        )
        return Adapter(config, Router(self.routing, layers), lora)

    def _forward(self, made: Batch) -> tuple[PackedPass, Tensor]:
        """The pass, which holds scores, and the language-model loss."""
        state = PackedPass(made.packed, self.router, self.reading, self.config.top_k, self.lora)
        p = made.packed
        logits = self.backbone.forward(state, p.ids, p.mask, p.positions, logits=made.columns)
        assert logits is not None
        return state, token_loss(logits, made.labels[:, made.columns + 1])


def _routing(backbone: Backbone, config: PackedConfig) -> RoutingConfig:
    spec = backbone.spec
    layers = tuple(range(spec.layers // 2, spec.layers)) if config.layers is None else config.layers
    if layers[-1] >= spec.layers:
        raise ConfigError(f"layers: {backbone.name} has no layer {layers[-1]}; it has {spec.layers}")
    return RoutingConfig(
        layers=layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        pooling=config.pooling,
        head_reduce=config.head_reduce,
        query_reduce=config.query_reduce,
        chunk_reduce=config.chunk_reduce,
    )


def _router(backbone: Backbone, routing: RoutingConfig, start: str, adapter: Adapter | None, seed: int) -> Router:
    """Leaves on the backbone's device: the adapter's projections, or new ones."""
    if adapter is not None and adapter.config.routing != routing:
        raise ConfigError(
            f"adapter {adapter.config.name} routes otherwise than this training: {adapter.config.routing} and {routing}"
        )
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for index in routing.layers:
        if adapter is not None:
            given = adapter.router.layers[index]
            q, k = given.q_weight, given.k_weight
        elif start == "random":
            hidden = backbone.spec.hidden
            q, k = (
                torch.randn(rows, hidden, generator=generator) / hidden**0.5
                for rows in (routing.heads * routing.head_dim, routing.key_width)
            )
        else:
            attention = decoder_layers(backbone.model)[index].get_submodule("self_attn")
            q, k = (attention.get_parameter(f"{part}_proj.weight") for part in "qk")
        made = RouterLayer(q, k)
        layers[index] = made.each(lambda t: t.detach().to(backbone.device, torch.float32, copy=True).requires_grad_())
    return Router(routing, layers)


def _lora(backbone: Backbone, config: PackedConfig, adapter: Adapter | None, seed: int) -> Lora:
    if adapter is not None and adapter.lora is not None:
        begun = adapter.lora
    else:
        first = _routing(backbone, config).layers[0]
        layers = range(first, backbone.spec.layers) if config.lora_layers is None else config.lora_layers
        generator = torch.Generator().manual_seed(seed + 1)
        begun = Lora.fresh(backbone.model, layers, config.rank, config.modules, generator)
    begun.check(backbone.model)
    return begun.trainable(backbone.device)


def _recall(state: PackedPass, positives: Sequence[Tensor]) -> float:
    """Mean over rows and router layers of the share of right documents that were selected."""
    found = [
        float(chosen[row, 1 : len(wanted) + 1][wanted].float().mean())
        for chosen in state.selected.values()
        for row, wanted in enumerate(positives)
        if bool(wanted.any())
    ]
    return sum(found) / len(found) if found else 0.0
