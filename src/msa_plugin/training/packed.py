"""The forward pass of training: template head, documents, question and response of a sample in one packed row.

It goes through the seams of inference (`backbone.attention`); only what is attended to is made differently: pooled
chunks come from the row itself, with gradients, and routing happens where they are made (golden spec section 7).
Shapes: B rows, T tokens, H heads, KV key/value heads, D head dim, N documents and C chunks of all rows together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from msa_kernels import chunk_offsets, plain_scores, pool_chunks
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.router import Router
from msa_plugin.config import ContentConfig
from msa_plugin.errors import ConfigError

QUESTION, RESPONSE, TEMPLATE = 0, -1, -2  # document numbers of tokens that belong to no document
SHARED = "shared"  # names the one ranking of adapters that rank once for all layers


@dataclass(frozen=True)
class Packed:
    """A batch of rows, right padded: `ids`, `positions`, `documents` int64 [B, T], `mask` bool [B, T].

    `documents` numbers a token's document in its row from 1, tokens of a document being neighbours; QUESTION marks
    the tokens that vote, TEMPLATE and RESPONSE the others.
    """

    ids: Tensor
    positions: Tensor
    documents: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        """Raises ConfigError for shapes that differ, gaps in the numbering, and rows without a question."""
        shape = self.ids.shape
        if any(t.shape != shape for t in (self.positions, self.documents, self.mask)) or self.ids.ndim != 2:
            raise ConfigError(f"ids, positions, documents and mask must all be [B, T], not {tuple(shape)} and others")
        owners = self.owners
        begins = owners.diff(dim=1, prepend=owners.new_zeros(shape[0], 1)) != 0
        runs = (begins & (owners > 0)).sum(1)
        if not torch.equal(runs, owners.amax(1)):
            raise ConfigError("the tokens of a document must be neighbours, and documents numbered from 1")
        if not bool(((self.documents == QUESTION) & self.mask).any(1).all()):
            raise ConfigError("every row needs a token of a question: nothing else is routed on")

    @property
    def owners(self) -> Tensor:
        """Document of each token [B, T], 0 for all others and for padding."""
        return torch.where(self.mask, self.documents.clamp(min=0), 0)

    @property
    def counts(self) -> Tensor:
        """Documents of each row [B]."""
        return self.owners.amax(1)


@dataclass(frozen=True)
class Chunks:
    """Chunks of `pooling` tokens of all documents, laid end to end: where they come from and where they stand.

    `offsets` [C + 1] in the documents' tokens; `row`, `document` (from 1) and `start` (token index in the row) [C];
    `slot` [C] is a chunk's place among its row's, of which there are `width` at most; `ranges` [N + 1] are each
    document's chunks.
    """

    offsets: Tensor
    ranges: Tensor
    row: Tensor
    document: Tensor
    start: Tensor
    slot: Tensor
    width: int

    @classmethod
    def of(cls, packed: Packed, pooling: int) -> Chunks:
        """No chunk crosses two documents; a document's last one may be short."""
        owners = packed.owners
        row, start = (owners > 0).nonzero(as_tuple=True)
        lengths = _lengths(packed)
        offsets, chunks = chunk_offsets(lengths, pooling)
        offsets = offsets.to(owners.device)
        first = offsets[:-1]
        rows = row[first]
        per_row = torch.bincount(rows, minlength=owners.shape[0])
        slot = torch.arange(len(first), device=owners.device) - (per_row.cumsum(0) - per_row)[rows]
        ranges = F.pad(chunks.to(owners.device).cumsum(0), (1, 0))
        width = int(per_row.max()) if len(first) else 0
        return cls(offsets, ranges, rows, owners[rows, start[first]], start[first], slot, width)

    def spread(self, values: Tensor, rows: int) -> Tensor:
        """`values` [C, ...] by row and slot, [B, width, ...]; zeros where a row has fewer."""
        out = values.new_zeros((rows, self.width, *values.shape[1:]))
        return out.index_put((self.row, self.slot), values)


def _lengths(packed: Packed) -> Tensor:
    """Tokens of each document, all rows' documents in order [N], on the CPU."""
    owners = packed.owners
    width = int(owners.max()) + 1
    flat = owners + torch.arange(owners.shape[0], device=owners.device)[:, None] * width
    counts = torch.bincount(flat[owners > 0], minlength=owners.shape[0] * width).view(-1, width)[:, 1:]
    return counts[counts > 0].cpu()


class PackedPass(ForwardState):
    """Every document sees itself; router layers' other tokens see each other and the chunks of what was selected.

    After the forward `scores` holds document scores [B, n + 1] by router layer (or SHARED), column 0 and absent
    documents -inf, with gradients; selection itself has none, so the language-model loss teaches routing nothing.
    """

    def __init__(
        self, packed: Packed, router: Router, reading: ContentConfig | None, top_k: int, lora: Lora | None = None
    ) -> None:
        """`reading` names the layers that attend to chunks and how these are pooled; None: none does.

        Raises ConfigError for a shared ranking that comes after a layer which would need it.
        """
        super().__init__(router=router, lora=lora)
        config = router.config
        if reading is not None and config.selection == "shared" and min(reading.layers) <= max(config.layers):
            raise ConfigError("layers that read must follow the last routing layer where one ranking serves all")
        if reading is not None and config.selection == "per_layer" and not {*reading.layers} <= {*config.layers}:
            raise ConfigError("layers that read must be routing layers where each selects for itself")
        self.packed, self.config, self.reading, self.top_k = packed, config, reading, top_k
        self.scores: dict[int | str, Tensor] = {}
        self.selected: dict[int | str, Tensor] = {}  # bool [B, n + 1]
        self.chunks = Chunks.of(packed, config.pooling)
        same = reading is None or reading.pooling == config.pooling
        self.content = self.chunks if same or reading is None else Chunks.of(packed, reading.pooling)
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[int | None, Tensor] = {}
        self._voters = _compact((packed.documents == QUESTION) & packed.mask)

    # What the attention function asks for

    def see_input(self, layer: int, hidden: Tensor) -> None:
        """Route where this is a router layer with projections of its own."""
        if not self._routes_at(layer) or self.router is None or self.config.source != "projection":
            return
        documents = self.packed.owners > 0
        keys = self.router.key_part(layer, hidden[documents], self.packed.ids[documents], _lengths(self.packed))
        if self.config.selection == "per_layer":
            rows, votes = self._voting(hidden)
            self._rank(
                layer, self.router.queries(layer, rows), votes, self.router.finish_keys({layer: keys})[str(layer)]
            )
            return
        self._parts[layer] = (self._query_part(layer, hidden), keys)
        if layer == self.config.layers[-1]:
            self._rank_shared()

    def see_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Route on the attention's own Q and K where the router shares them."""
        if not self._routes_at(layer) or self.router is None or self.config.source != "attention":
            return
        rows, votes = self._voting(query.transpose(1, 2))
        tokens = key.transpose(1, 2)[self.packed.owners > 0].flatten(1).float()
        (pooled,) = pool_chunks([tokens], self.chunks.offsets)
        queries = self.router.attention_queries(rows.transpose(1, 2))
        self._rank(layer, queries, votes, self.router.finish_keys({layer: pooled})[str(layer)])

    def assemble(
        self, layer: int, key: Tensor, value: Tensor, window: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """K, V [B, KV, S, D] and the mask [B, 1, T, S]; chunks come first where the layer reads any."""
        own = self._own_mask(window)
        if self.reading is None or layer not in self.reading.layers or self.content.width == 0:
            return key, value, own[:, None]
        keys, values = (torch.cat(both, dim=2) for both in zip(self._pooled(key, value), (key, value), strict=True))
        return keys, values, torch.cat([self._memory_mask(layer), own], dim=2)[:, None]

    # Routing

    def _routes_at(self, layer: int) -> bool:
        return layer in self.config.layers

    def _voting(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States of the voting tokens alone, [B, Tq, ...], and which of them are real [B, Tq]."""
        places, votes = self._voters
        rows = torch.arange(states.shape[0], device=states.device)[:, None]
        return states[rows, places], votes

    def _query_part(self, layer: int, hidden: Tensor) -> Tensor:
        assert self.router is not None
        rows, votes = self._voting(hidden)
        if self.config.query_reduce != "pooled":
            return self.router.query_part(layer, rows)
        ids, _ = self._voting(self.packed.ids)
        return self.router.pooled_query_part(layer, rows, ids, votes)

    def _rank_shared(self) -> None:
        assert self.router is not None
        queries, _ = self.router.shared_queries({layer: q for layer, (q, _) in self._parts.items()})
        keys = self.router.finish_keys({layer: k for layer, (_, k) in self._parts.items()})[SHARED]
        pooled = self.config.query_reduce == "pooled"  # before it was projected: one query a row, which votes
        votes = queries.new_ones(len(queries), 1, dtype=torch.bool) if pooled else self._voters[1]
        self._rank(SHARED, queries, votes, keys)

    def _rank(self, name: int | str, queries: Tensor, votes: Tensor, keys: Tensor) -> None:
        """Score the documents of all rows, keep each row's own, and select its best `top_k`."""
        c = self.config
        groups = 1 if name != SHARED or c.joint else len(c.layers)
        every = groups * plain_scores(
            queries,
            votes,
            keys,
            self.chunks.ranges,
            kv_heads=c.kv_heads * groups,
            head_reduce=c.head_reduce,
            query_reduce="max" if name == SHARED and c.query_reduce == "pooled" else c.query_reduce,
            chunk_reduce=c.chunk_reduce,
            normalize=c.normalize,
            scale=c.scale,
        )
        counts = self.packed.counts
        width = int(counts.max()) + 1
        columns = torch.arange(width, device=counts.device)
        there = (columns >= 1) & (columns <= counts[:, None])
        first = counts.cumsum(0) - counts
        places = (first[:, None] + columns - 1).clamp(0, max(every.shape[1] - 1, 0))
        scores = every.gather(1, places) if every.shape[1] else every.new_zeros(len(counts), width)
        self.scores[name] = scores.masked_fill(~there, -torch.inf)
        best = self.scores[name].detach().topk(min(self.top_k, width), dim=1).indices
        self.selected[name] = torch.zeros_like(there).scatter(1, best, value=True) & there

    # Attention

    def _pooled(self, *states: Tensor) -> list[Tensor]:
        """Chunk means [B, KV, width, D] of each of `states` [B, KV, T, D]."""
        documents = [x.transpose(1, 2)[self.packed.owners > 0] for x in states]
        pooled = pool_chunks(documents, self.content.offsets)
        return [self.content.spread(x, self.packed.owners.shape[0]).transpose(1, 2) for x in pooled]

    def _own_mask(self, window: int | None) -> Tensor:
        """Which tokens of its row a token sees [B, T, T]: earlier ones of its document, or of those outside any."""
        if window not in self._own:
            owners, real = self.packed.owners, self.packed.mask
            index = torch.arange(owners.shape[1], device=owners.device)
            seen = (owners[:, :, None] == owners[:, None, :]) & (index[:, None] >= index) & real[:, None, :]
            if window is not None:  # counted among the tokens that a token can see
                outside = (owners == 0).cumsum(1)
                order = torch.where(owners > 0, index, outside)
                seen = seen & (order[:, :, None] - order[:, None, :] < window)
            # A padding token must see something, or its softmax is 0/0 and the NaN spreads; nobody reads its output.
            self._own[window] = seen | (index[:, None] == index)
        return self._own[window]

    def _memory_mask(self, layer: int) -> Tensor:
        """Which chunks a token sees [B, T, width]: those of selected documents that begin before it."""
        name: int | str = SHARED if self.config.selection == "shared" else layer
        content, owners = self.content, self.packed.owners
        chosen = content.spread(self.selected[name][content.row, content.document], len(owners))
        start = content.spread(content.start, len(owners))
        index = torch.arange(owners.shape[1], device=owners.device)
        return chosen[:, None, :] & (start[:, None, :] <= index[:, None]) & (owners == 0)[:, :, None]


def _compact(votes: Tensor) -> tuple[Tensor, Tensor]:
    """Places [B, Tq] of each row's voting tokens, first to last, and which of these are real."""
    width = int(votes.sum(1).max())
    order = torch.argsort((~votes).to(torch.int8), dim=1, stable=True)[:, :width]
    return order, votes.gather(1, order)
