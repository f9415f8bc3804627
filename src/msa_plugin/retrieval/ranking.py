"""Routing questions through the backbone: from text to a ranking of documents (paper equation 2).

With a shared selection a question runs only as deep as the last routing layer, and one matrix product ranks every
document. With per-layer selection routing happens inside a full prefill, since each layer's choice changes what the
next one sees; the layers' rankings are then merged by their mean score.
Shapes: B rows, T tokens, H heads, D head dim, C chunks, W routing-key width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from msa_kernels import plain_scores
from msa_plugin.backbone.attention import ActivationRecorder, CausalRows
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle
from msa_plugin.cancellation import check_cancelled
from msa_plugin.config import RoutingConfig
from msa_plugin.encoding.encoder import pad_right, plan_batches
from msa_plugin.retrieval.assembly import BankSource


class Link(NamedTuple):
    """What a name adds to a document's score: its title stands in the document `by`, or in the question (None).

    With `shared` it is any name that both documents have.
    """

    by: int | None
    added: float
    shared: bool = False


@dataclass(frozen=True)
class Ranked:
    """A routed document: its score, the routing score's parts by layer, and the chunk that scored best.

    `relevance` is how likely it answers the question (`relevance`), None where nothing was fitted to say so.
    `words`, `links` and `recency` are what words, names and being new added to the score beside routing keys
    (`words`, `links`, `shared_names`, `recency`).
    """

    ordinal: int
    score: float
    layer_scores: dict[int, float]
    best_chunk: int
    relevance: float | None = None
    words: float = 0.0
    links: tuple[Link, ...] = ()
    recency: float = 0.0

    @property
    def signals(self) -> dict[str, float]:
        """What the score is the sum of: what `keys`, `words`, `names` and `recency` gave, the latter where they did."""
        names = sum(link.added for link in self.links)
        beside = {"words": self.words, "names": names, "recency": self.recency}
        keys = self.score - self.recency - self.words - names
        return {"keys": keys, **{name: value for name, value in beside.items() if value}}


def best_first(ranked: Iterable[Ranked]) -> list[Ranked]:
    """Documents in the order of their scores; ties go to the lower ordinal."""
    return sorted(ranked, key=lambda r: (-r.score, r.ordinal))


ChunkScores = Callable[[Sequence[int]], list[NDArray[np.float32]]]  # of documents by ordinal: [C] of their chunks


class RouteRecorder(ActivationRecorder):
    """Collects routing queries layer by layer and ends the forward before the deepest layer's attention."""

    def __init__(self, router: Router, ids: Tensor, mask: Tensor) -> None:
        """`ids` and `mask` [B, T], right padded."""
        self.router, self.ids, self.mask = router, ids, mask
        self.parts: dict[int, Tensor] = {}

    def on_input(self, layer: int, hidden: Tensor) -> None:
        """Keep a routing layer's queries."""
        if layer not in self.router.config.layers:
            return
        if self.router.config.query_reduce == "pooled":
            self.parts[layer] = self.router.pooled_query_part(layer, hidden, self.ids, self.mask)
        else:
            self.parts[layer] = self.router.query_part(layer, hidden)

    def done_before(self, layer: int) -> bool:
        """The last routing layer's input is the last state wanted."""
        return layer == self.router.config.layers[-1]


class SharedQueries(NamedTuple):
    """Routing queries [B, L * H, T, D] of a batch, each layer's share of them [L, B, T, W], and who votes [B, T]."""

    queries: Tensor
    shares: Tensor
    votes: Tensor

    def of(self, row: int) -> Tensor:
        """The layers' shares [L, T, W] of one row, of the tokens that vote."""
        return self.shares[:, row][:, self.votes[row]]


def shared_queries(
    backbone: Backbone, router: Router, rows: Sequence[Sequence[int]], batch_tokens: int, lora: Lora | None = None
) -> SharedQueries:
    """Routing queries of token rows for a shared selection; T is 1 where the router pools a question's tokens.

    Rows share a forward up to `batch_tokens`, so that memory does not grow with their number. It runs with `lora`.
    """
    batches = plan_batches([len(row) for row in rows], batch_tokens)
    parts = [_one_forward(backbone, router, [rows[i] for i in batch], lora) for batch in batches]
    longest = max(part.votes.shape[1] for part in parts)
    padded = [_lengthened(part, longest - part.votes.shape[1]) for part in parts]
    order = torch.tensor([i for batch in batches for i in batch]).argsort()
    queries, shares, votes = zip(*padded, strict=True)
    return SharedQueries(torch.cat(queries)[order], torch.cat(shares, 1)[:, order], torch.cat(votes)[order])


def _lengthened(part: SharedQueries, by: int) -> SharedQueries:
    """The same with `by` more tokens that do not vote."""
    rows = (0, 0, 0, by)
    return SharedQueries(pad(part.queries, rows), pad(part.shares, rows), pad(part.votes, (0, by)))


def _one_forward(backbone: Backbone, router: Router, rows: Sequence[Sequence[int]], lora: Lora | None) -> SharedQueries:
    check_cancelled()
    ids, mask = pad_right(rows, backbone.device)
    recorder = RouteRecorder(router, ids, mask)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    backbone.run(CausalRows(recorder=recorder, lora=lora), ids, mask, positions, logits="none")
    queries, shares = router.shared_queries(recorder.parts)
    votes = mask.new_ones(mask.shape[0], 1) if queries.shape[2] == 1 else mask
    return SharedQueries(queries, shares, votes)


def interpolate(questions: SharedQueries, follow_ups: SharedQueries, weight: float, router: Router) -> SharedQueries:
    """Each question's vector plus `weight` times its follow-up's, normalised again (one head a layer, T = 1).

    Keeping the question's own vector in the sum stops a round from drifting to whatever resembles the text it read.
    """
    total = questions.queries + weight * follow_ups.queries
    shares = questions.shares + weight * follow_ups.shares
    if router.config.normalize:
        factor = router.config.scale / total.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        total = total * factor
        shares = shares * factor.transpose(0, 1)
    return SharedQueries(total, shares, questions.votes)


def score_breakdown(
    bank: BankHandle, config: RoutingConfig, shares: Tensor, ordinals: list[int], scores: list[float] | None = None
) -> list[Ranked]:
    """Take each score apart: the chunk (and question token) that gave it, and the share of each layer [L, T, W].

    Without `scores` they are worked out here, as the sum of the shares.
    """
    if not ordinals:
        return []
    rows = bank.key_rows(ordinals, "shared")
    lengths = [keys.shape[0] for keys in rows]
    # Products and sums are each document's own: how they round must not depend on what else was found.
    products = [shares @ keys.to(shares).T for keys in rows]
    totals = torch.cat([product.sum(0) for product in products], 1).cpu().numpy()
    parts = torch.cat(products, 2).cpu().numpy()
    ranked, first = [], 0
    for place, (ordinal, length) in enumerate(zip(ordinals, lengths, strict=True)):
        token, chunk = divmod(int(totals[:, first : first + length].argmax()), length)
        by_layer = parts[:, token, first + chunk].tolist()
        score = sum(by_layer) if scores is None else scores[place]
        ranked.append(Ranked(ordinal, score, dict(zip(config.layers, by_layer, strict=True)), chunk))
        first += length
    return ranked


def chunks_of(bank: BankHandle, asked: SharedQueries) -> list[ChunkScores]:
    """For each row, what scores every chunk of any documents."""

    def scores(shares: Tensor, ordinals: Sequence[int]) -> list[NDArray[np.float32]]:
        rows = bank.key_rows(ordinals, "shared") if ordinals else []
        return [(shares @ keys.to(shares).T).sum(0).amax(0).cpu().numpy() for keys in rows]

    return [partial(scores, asked.of(row)) for row in range(asked.votes.shape[0])]


def routed_chunks_of(bank: BankHandle, config: RoutingConfig, source: BankSource, votes: Tensor) -> list[ChunkScores]:
    """The same of a prefill that routed per layer: the layers' mean."""

    def scores(row: int, ordinals: Sequence[int]) -> list[NDArray[np.float32]]:
        layers = [
            _chunk_scores(bank, config, list(ordinals), layer, queries[row : row + 1], votes[row : row + 1])
            for layer, queries in (source.queries.items() if ordinals else ())
        ]
        return [torch.stack([part.cpu() for part in parts]).mean(0).numpy() for parts in zip(*layers, strict=True)]

    return [partial(scores, row) for row in range(votes.shape[0])]


def rank_routed(
    bank: BankHandle, config: RoutingConfig, source: BankSource, votes: Tensor, k: int, also: Sequence[int] = ()
) -> list[list[Ranked]]:
    """One ranking a row from a prefill that routed per layer: by mean score over layers, ties by lower ordinal.

    Every document that any layer selected is scored in all of them. With documents `also` come all of these and more.
    """
    kept, rows = None if also else k, []
    for row in range(votes.shape[0]):
        selected = {int(o) for routed in source.routed.values() for o in routed.ordinals[row]}
        rows.append(score_routed(bank, config, source, votes, row, {*also, *selected})[:kept])
    return rows


def score_routed(
    bank: BankHandle, config: RoutingConfig, source: BankSource, votes: Tensor, row: int, ordinals: Iterable[int]
) -> list[Ranked]:
    """Documents ranked by one row of a prefill that routed per layer, whether a layer selected them or not."""
    candidates = sorted(set(ordinals))
    if not candidates:
        return []
    by_layer = {
        layer: _chunk_scores(bank, config, candidates, layer, queries[row : row + 1], votes[row : row + 1])
        for layer, queries in source.queries.items()
    }
    ranked = []
    for index, ordinal in enumerate(candidates):
        chunks = {layer: scores[index] for layer, scores in by_layer.items()}
        reduce = torch.amax if config.chunk_reduce == "max" else torch.mean
        scores = {layer: float(reduce(values, 0)) for layer, values in chunks.items()}
        best = int(torch.stack([c.cpu() for c in chunks.values()]).mean(0).argmax())
        ranked.append(Ranked(ordinal, sum(scores.values()) / len(scores), scores, best))
    return best_first(ranked)


def _chunk_scores(
    bank: BankHandle, config: RoutingConfig, ordinals: list[int], layer: int, queries: Tensor, votes: Tensor
) -> list[Tensor]:
    """Scores [C] of every chunk of each document at one layer."""
    rows = bank.key_rows(ordinals, str(layer))
    keys = torch.cat(list(rows)).to(queries.device)
    each_chunk = torch.arange(keys.shape[0] + 1)
    scores = plain_scores(
        queries,
        votes.to(queries.device),
        keys,
        each_chunk,
        kv_heads=config.kv_heads,
        head_reduce=config.head_reduce,
        query_reduce=config.query_reduce,
        normalize=config.normalize,
        scale=config.scale,
    )[0]
    return list(scores.split_with_sizes([len(r) for r in rows]))
