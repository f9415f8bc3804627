"""A router without training: whitened hidden states of a few lower layers, from forward passes over plain text.

Each chunk, and each whole question, is the weighted mean of its tokens' layer inputs, with weights a / (a + p(token)):
frequent tokens say little about what a text is about (smooth inverse frequency, Arora et al. 2017). The routing
layers' means are put side by side, centred (questions around their own mean), whitened by PCA and normalised, so that
a score is a cosine. Nothing is trained and no question-passage pairs are needed.
Shapes: N samples, L layers, h hidden size, D dimensions kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from pydantic import Field, model_validator
from torch import Tensor

from msa_kernels import chunk_offsets, mean_pool
from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.attention import CausalRows, Sink
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import Abilities, ContentConfig, RoutingConfig, Settings
from msa_plugin.engine.encoder import pad_right, plan_batches
from msa_plugin.errors import ConfigError
from msa_plugin.types import OnProgress, Progress

_PORTION = 256


class CalibrationConfig(Settings):
    """What to build. `layers` None takes three layers from the first fifth of the backbone's depth.

    `dims` is D, the numbers in a routing key; `pooling` is P; `smoothing` is a; `power` is how far whitening goes
    (1: unit variance, 0: none); `passages` and `questions` bound the samples; `window` bounds a passage's tokens.
    """

    layers: tuple[int, ...] | None = None
    dims: int = Field(default=512, gt=0)
    pooling: int = Field(default=32, gt=0)
    smoothing: float = Field(default=1e-3, gt=0)
    power: float = Field(default=1.0, ge=0, le=1)
    passages: int = Field(default=4000, ge=2)
    questions: int = Field(default=2000, ge=1)
    window: int = Field(default=512, ge=8)
    batch_tokens: int = Field(default=4096, ge=8)
    prefix: str | None = "auto"
    top_k: int = Field(default=8, gt=0)

    @model_validator(mode="after")
    def _ascending(self) -> CalibrationConfig:
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers must be ascending and distinct")
        return self


def default_layers(depth: int) -> tuple[int, ...]:
    """The first layer and two more within the first fifth of the depth: 0, 3 and 6 of 30."""
    return tuple(sorted({0, depth // 10, depth // 5}))


class _PooledStates(Sink):
    """Weighted means of the layers' inputs, per chunk or per row, layers side by side."""

    def __init__(self, layers: Sequence[int], ids: Tensor, mask: Tensor, weights: Tensor, pooling: int) -> None:
        self.layers, self.mask = layers, mask
        self.offsets, _ = chunk_offsets(mask.sum(1), pooling)
        self.weights = weights[ids[mask]]
        self.states: list[Tensor] = []

    def on_input(self, layer: int, hidden: Tensor) -> None:
        if layer in self.layers:
            self.states.append(mean_pool(hidden[self.mask].float(), self.offsets, self.weights).cpu())

    def done_before(self, layer: int) -> bool:
        return layer == self.layers[-1]


def token_weights(rows: Iterable[Sequence[int]], vocab: int, smoothing: float, silent: Iterable[int] = ()) -> Tensor:
    """Weights a / (a + p) [V] from the tokens' frequencies; tokens never seen weigh 1, `silent` ones 0."""
    counts = torch.zeros(vocab, dtype=torch.float64)
    for row in rows:
        counts += torch.bincount(torch.tensor(list(row), dtype=torch.long), minlength=vocab)
    weights = smoothing / (smoothing + counts / counts.sum().clamp(min=1))
    weights[list(silent)] = 0.0
    return weights.float()


def whitening(states: Tensor, dims: int, power: float) -> tuple[Tensor, Tensor]:
    """Mean [L*h] and projection [D, L*h] of `states` [N, L*h]: PCA, each direction divided by its deviation^power."""
    data = states.double()
    mean = data.mean(0)
    values, vectors = torch.linalg.eigh((data - mean).T @ (data - mean) / max(len(data) - 1, 1))
    keep = min(dims, int((values > values[-1] * 1e-10).sum()))
    values, vectors = values.flip(0)[:keep], vectors.flip(1)[:, :keep]
    return mean.float(), (vectors * values.clamp(min=1e-12) ** (-power / 2)).T.float()


class Calibration:
    """One calibration run: feed passages and questions, get an adapter."""

    def __init__(self, backbone: Backbone, config: CalibrationConfig) -> None:
        """Raises ConfigError for layers that the backbone does not have."""
        self.backbone, self.config = backbone, config
        self.layers = config.layers or default_layers(backbone.spec.layers)
        if self.layers[-1] >= backbone.spec.layers or self.layers[0] < 0:
            raise ConfigError(f"layers {self.layers}: {backbone.name} has layers 0 to {backbone.spec.layers - 1}")
        self.prefix = start_token(backbone) if config.prefix == "auto" else config.prefix
        self._prefix_ids = [] if self.prefix is None else [backbone.special(self.prefix)]

    def run(self, passages: Iterable[str], questions: Iterable[str], on_progress: OnProgress | None = None) -> Adapter:
        """Calibrate from plain text. Raises ConfigError when there is too little of it to whiten."""
        rows = self._tokens(passages, self.config.passages)
        asked = self._tokens(questions, self.config.questions)
        if len(rows) < 2 or not asked:
            raise ConfigError("calibration needs at least 2 passages and 1 question; give it more text")
        weights = token_weights(rows, self.backbone.spec.vocab, self.config.smoothing, self._prefix_ids)
        states = self._states(rows, weights, self.config.pooling, on_progress)
        mean, projection = whitening(states, self.config.dims, self.config.power)
        # A question is pooled whole, so its centre is not a chunk's centre.
        question_mean = self._states(asked, weights, self.config.window, None).mean(0)
        return self._adapter(weights, mean, question_mean, projection, len(rows), len(asked))

    def _tokens(self, texts: Iterable[str], limit: int) -> list[list[int]]:
        rows: list[list[int]] = []
        room = self.config.window - len(self._prefix_ids)
        stream = iter(texts)
        while len(rows) < limit and (portion := list(islice(stream, min(_PORTION, limit - len(rows))))):
            rows += [self._prefix_ids + ids[:room] for ids in self.backbone.tokenize_batch(portion) if ids]
        return rows

    def _states(self, rows: list[list[int]], weights: Tensor, pooling: int, on_progress: OnProgress | None) -> Tensor:
        parts, done, tokens = [], 0, 0
        weights = weights.to(self.backbone.device)
        for batch in plan_batches([len(r) for r in rows], self.config.batch_tokens):
            ids, mask = pad_right([rows[i] for i in batch], self.backbone.device)
            sink = _PooledStates(self.layers, ids, mask, weights, pooling)
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            self.backbone.run(CausalRows(sink=sink), ids, mask, positions, logits="none")
            parts.append(torch.cat(sink.states, dim=1))
            done, tokens = done + len(batch), tokens + int(mask.sum())
            if on_progress is not None:
                on_progress(Progress(done, tokens, len(rows)))
        return torch.cat(parts)

    def _adapter(
        self, weights: Tensor, mean: Tensor, question_mean: Tensor, projection: Tensor, passages: int, questions: int
    ) -> Adapter:
        spec = self.backbone.spec
        routing = RoutingConfig(
            layers=self.layers,
            heads=1,
            kv_heads=1,
            head_dim=projection.shape[0],
            pooling=self.config.pooling,
            selection="shared",
            query_reduce="pooled",
            token_weighted=True,
            joint=True,
        )
        config = AdapterConfig(
            name=f"{self.backbone.name} calibrated",
            backbone=self.backbone.weights_hash(),
            tokenizer=self.backbone.tokenizer_hash(),
            hidden=spec.hidden,
            routing=routing,
            reading=ContentConfig(layers=tuple(range(spec.layers // 2, spec.layers)), pooling=64),
            abilities=Abilities(route=True),
            top_k=self.config.top_k,
            prefix=self.prefix,
            provenance={
                "method": "closed form, untrained",
                "passages": passages,
                "questions": questions,
                **self.config.model_dump(mode="json", exclude={"passages", "questions"}),
            },
        )
        return Adapter(config, Router(routing, self._layers(projection, mean, question_mean), weights))

    def _layers(self, projection: Tensor, mean: Tensor, question_mean: Tensor) -> dict[int, RouterLayer]:
        """Split the joint projection [D, L*h] by layer; the centres become biases of the first layer's part."""
        hidden = self.backbone.spec.hidden
        k_bias, q_bias = -(projection @ mean), -(projection @ question_mean)
        layers = {}
        for place, index in enumerate(self.layers):
            part = projection[:, place * hidden : (place + 1) * hidden].contiguous()
            layers[index] = RouterLayer(part, part.clone(), *((q_bias, k_bias) if place == 0 else (None, None)))
        return layers


def start_token(backbone: Backbone) -> str | None:
    """The token that the backbone expects first: its beginning-of-sequence token, if it has one.

    Decoders park attention on the first token, whatever it is; better a silent one than the text's own.
    """
    token = getattr(backbone.tokenizer, "bos_token", None)
    return token if isinstance(token, str) else None
