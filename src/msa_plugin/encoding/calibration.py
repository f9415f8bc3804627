"""A router without training: hidden states of one or a few lower layers, projected in closed form.

Each chunk, and each whole question, is the weighted mean of its tokens' layer inputs, with weights a / (a + p(token)):
frequent tokens say little about what a text is about (smooth inverse frequency, Arora et al. 2017). A share of its
document's mean is added to each chunk. Chunks and questions are centred, each around their own mean, and projected to
the directions in which chunks differ most relative to *noise*, as in linear discriminant analysis: noise is the
difference between neighbouring chunks of a document, which tell of the same thing in other words. Keys and queries are
normalised, so a score is a cosine. Questions serve for their mean alone; no question-passage pairs are needed.
Shapes: N samples, L layers, h hidden size, D dimensions kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from pydantic import Field, model_validator
from torch import Tensor

from msa_kernels import chunk_offsets
from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.attention import ActivationRecorder, CausalRows
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import Abilities, BesideConfig, ContentConfig, RoutingConfig, Settings
from msa_plugin.encoding.encoder import pad_right, plan_batches
from msa_plugin.errors import ConfigError
from msa_plugin.types import OnProgress, Progress

_PORTION = 256


class CalibrationConfig(Settings):
    """What to build; the defaults were chosen by measurement on the default backbone (docs/experiments).

    `layers` None takes two of the first sixth of the backbone's depth. `dims` is D, the numbers in a routing key;
    `pooling` is P; `smoothing` is a; `document_mix` the share of the document's mean; `shrinkage` pulls the noise
    covariance towards a multiple of the identity (1: all the way); `power` is how far the kept directions are made
    alike (1: unit variance, 0: not at all). `passages` and `questions` bound the samples, `window` a passage's tokens.
    """

    layers: tuple[int, ...] | None = None
    dims: int = Field(default=384, gt=0)
    pooling: int = Field(default=32, gt=0)
    smoothing: float = Field(default=3e-4, gt=0)
    document_mix: float = Field(default=0.8, ge=0)
    shrinkage: float = Field(default=0.5, gt=0, le=1)
    power: float = Field(default=0.5, ge=0, le=1)
    passages: int = Field(default=4000, ge=2)
    questions: int = Field(default=2000, ge=1)
    window: int = Field(default=512, ge=8)
    batch_tokens: int = Field(default=1024, ge=8)
    prefix: str | None = "auto"
    top_k: int = Field(default=8, gt=0)

    @model_validator(mode="after")
    def _ascending(self) -> CalibrationConfig:
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers must be ascending and distinct")
        return self


def default_layers(depth: int) -> tuple[int, ...]:
    """A near-lexical layer and one at a sixth of the depth: 1 and 5 of 30. Encoding stops there, which is cheap."""
    return tuple(sorted({depth // 30, depth // 6}))


class _PooledStates(ActivationRecorder):
    """Pooled layer inputs of a batch, per chunk or (for questions) per row, layers side by side."""

    def __init__(self, layers: Sequence[int], ids: Tensor, mask: Tensor, pooler: Router) -> None:
        self.layers, self.mask, self.pooler = layers, mask, pooler
        self.ids, self.lengths = ids[mask], mask.sum(1)
        self.states: list[Tensor] = []

    def on_input(self, layer: int, hidden: Tensor) -> None:
        if layer in self.layers:
            self.states.append(self.pooler.pool_chunks(hidden[self.mask], self.ids, self.lengths).cpu())

    def done_before(self, layer: int) -> bool:
        return layer == self.layers[-1]


def token_weights(rows: Iterable[Sequence[int]], vocab: int, smoothing: float, silent: Iterable[int]) -> Tensor:
    """Weights a / (a + p) [V] from the tokens' frequencies; tokens never seen weigh 1, `silent` ones 0."""
    counts = torch.zeros(vocab, dtype=torch.float64)
    for row in rows:
        counts += torch.bincount(torch.tensor(list(row), dtype=torch.long), minlength=vocab)
    weights = smoothing / (smoothing + counts / counts.sum().clamp(min=1))
    weights[list(silent)] = 0.0
    return weights.float()


def covariance(samples: Tensor) -> Tensor:
    """Covariance [h, h] of `samples` [N, h], float64."""
    data = samples.double()
    data = data - data.mean(0)
    return data.T @ data / max(len(data) - 1, 1)


def discriminants(chunks: Tensor, noise: Tensor, dims: int, shrinkage: float, power: float) -> Tensor:
    """Projection [D, h]: directions of `chunks` [N, h] with the most variance relative to `noise` [M, h].

    The noise is whitened first, so that a dot product of projections weighs each direction by how little noise it
    carries; of the kept directions each is then divided by its deviation ** `power`.
    """
    blurred = covariance(noise)
    identity = torch.eye(len(blurred), dtype=blurred.dtype) * blurred.diagonal().mean().clamp(min=1e-12)
    values, vectors = torch.linalg.eigh((1 - shrinkage) * blurred + shrinkage * identity)
    whiten = (vectors * values.clamp(min=1e-12) ** -0.5) @ vectors.T
    values, vectors = torch.linalg.eigh(whiten @ covariance(chunks) @ whiten)
    keep = min(dims, int((values > values[-1] * 1e-10).sum()))
    values, vectors = values.flip(0)[:keep], vectors.flip(1)[:, :keep]
    projection: Tensor = (vectors * values.clamp(min=1e-12) ** (-power / 2)).T @ whiten
    return projection.float()


def neighbour_noise(states: Tensor, documents: Tensor) -> Tensor:
    """Differences [M, h] between neighbouring chunks of a document; all pairs of neighbours if there are none."""
    together = documents[1:] == documents[:-1]
    differences = states[1:] - states[:-1]
    return differences[together] if bool(together.any()) else differences


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

    def run(
        self,
        passages: Iterable[str],
        questions: Iterable[str],
        on_progress: OnProgress | None = None,
    ) -> Adapter:
        """Calibrate from plain text. Raises ConfigError when there is too little of it."""
        rows = self._tokens(passages, self.config.passages)
        asked = self._tokens(questions, self.config.questions)
        if len(rows) < 2 or not asked:
            raise ConfigError("calibration needs at least 2 passages and 1 question; give it more text")
        weights = token_weights(rows, self.backbone.spec.vocab, self.config.smoothing, self._prefix_ids)
        pooler = self._pooler(weights, self.config.pooling, self.config.document_mix)
        chunks, documents = self._states(rows, pooler, on_progress)
        # A question is pooled whole and alone, so its centre is not a chunk's centre.
        wholes, _ = self._states(asked, self._pooler(weights, self.config.window, 0.0), None)
        noise = neighbour_noise(chunks, documents)
        projection = discriminants(chunks, noise, self.config.dims, self.config.shrinkage, self.config.power)
        seen = {"passages": len(rows), "questions": len(asked)}
        return self._adapter(weights, chunks.mean(0), wholes.mean(0), projection, seen)

    def _pooler(self, weights: Tensor, pooling: int, mix: float) -> Router:
        """A router whose projections are still blank: it can pool, and pools as the finished one will."""
        config = _routing(self.layers, 1, pooling, mix)
        blank = torch.zeros(1, self.backbone.spec.hidden)
        layers = dict.fromkeys(self.layers, RouterLayer(blank, blank))
        return Router(config, layers, weights).to(self.backbone.device)

    def _tokens(self, texts: Iterable[str], limit: int) -> list[list[int]]:
        """Token rows of up to a window each; a longer text gives several."""
        rows: list[list[int]] = []
        room = self.config.window - len(self._prefix_ids)
        stream = iter(texts)
        while len(rows) < limit and (portion := list(islice(stream, min(_PORTION, limit - len(rows))))):
            tokens = self.backbone.tokenize_batch(portion)
            rows += [self._prefix_ids + ids[at : at + room] for ids in tokens for at in range(0, len(ids), room)]
        return rows[:limit]

    def _states(self, rows: list[list[int]], pooler: Router, on_progress: OnProgress | None) -> tuple[Tensor, Tensor]:
        """Pooled states [N, L*h] of every row, in order, and the row that each comes from [N]."""
        parts: list[Tensor] = [torch.empty(0)] * len(rows)
        done = tokens = 0
        for batch in plan_batches([len(r) for r in rows], self.config.batch_tokens):
            ids, mask = pad_right([rows[i] for i in batch], self.backbone.device)
            recorder = _PooledStates(self.layers, ids, mask, pooler)
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            self.backbone.run(CausalRows(recorder=recorder), ids, mask, positions, logits="none")
            states = torch.cat(recorder.states, dim=1)
            _, counts = chunk_offsets(mask.sum(1).cpu(), pooler.config.pooling)
            for index, part in zip(batch, states.split_with_sizes(counts.tolist()), strict=True):
                parts[index] = part
            done, tokens = done + len(batch), tokens + int(mask.sum())
            if on_progress is not None:
                on_progress(Progress(done, tokens, len(rows)))
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(p) for p in parts]))
        return torch.cat(parts), owner

    def _adapter(
        self, weights: Tensor, mean: Tensor, question_mean: Tensor, projection: Tensor, seen: dict[str, int]
    ) -> Adapter:
        spec = self.backbone.spec
        routing = _routing(self.layers, projection.shape[0], self.config.pooling, self.config.document_mix)
        settings = self.config.model_dump(mode="json", exclude={"passages", "questions", "layers"})
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
            beside=BesideConfig(lexical=0.7, titles=0.4, mentions=0.4),
            provenance={"method": "closed form, untrained", **seen, **settings},
        )
        return Adapter(config, Router(routing, self._layers(projection, mean, question_mean), weights))

    def _layers(self, projection: Tensor, mean: Tensor, question_mean: Tensor) -> dict[int, RouterLayer]:
        """Split the joint projection [D, L*h] and the centres by layer, so that each layer's share is centred too."""
        hidden = self.backbone.spec.hidden
        layers = {}
        for place, index in enumerate(self.layers):
            own = slice(place * hidden, (place + 1) * hidden)
            part = projection[:, own].contiguous()
            layers[index] = RouterLayer(part, part.clone(), -(part @ question_mean[own]), -(part @ mean[own]))
        return layers


def _routing(layers: tuple[int, ...], dims: int, pooling: int, mix: float) -> RoutingConfig:
    return RoutingConfig(
        layers=layers,
        heads=1,
        kv_heads=1,
        head_dim=dims,
        pooling=pooling,
        selection="shared",
        query_reduce="pooled",
        token_weighted=True,
        joint=True,
        document_mix=mix,
    )


def start_token(backbone: Backbone) -> str | None:
    """The token that the backbone expects first: its beginning-of-sequence token, if it has one.

    Decoders park attention on the first token, whatever it is; better a silent one than the text's own.
    """
    token = getattr(backbone.tokenizer, "bos_token", None)
    return token if isinstance(token, str) else None
