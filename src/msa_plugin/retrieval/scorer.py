"""Exact search over routing keys: tiled products, segmented reduction to documents, streaming top-k.

Source: MSA, arXiv 2603.23516, equation 2: score(doc) = max over chunks, max over question tokens, mean over heads of
cos(Q^R, K^R). With a mean over heads that is one product per tile (`msa_kernels.collapse_heads`). The workspace depends
on the tile sizes, the batch and k alone, never on the number of chunks or of question tokens.
Shape legend: B rows, T question tokens, H heads, D head dim, W routing-key width, C chunks, N documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from msa_kernels import Backend, use_triton
from msa_plugin.bank.spans import TILE_CHUNKS, ChunkSpan, check_block, spans
from msa_plugin.bank.tiers import KeyTier
from msa_plugin.config import MemoryConfig, RoutingConfig
from msa_plugin.errors import InvalidQueryError
from msa_plugin.retrieval.fused import FusedSearch, without_kernel
from msa_plugin.retrieval.queries import TokenTile, Voters, key_width, token_tiles, voters
from msa_plugin.types import KeyBlock

TILE_TOKENS = 256
# Numbers of a converted panel of keys per thread: 1 MiB of float32 stays in a core's second-level cache between the
# conversion and the product (measured: a third faster than panels that do not).
PANEL_NUMBERS = 1 << 18


class RoutedDocuments(NamedTuple):
    """`ordinals` int64 [B, k'], `scores` float32 [B, k'], each row by descending score, ties by lower ordinal."""

    ordinals: Tensor
    scores: Tensor


@torch.no_grad()
def route(
    queries: Tensor,
    mask: Tensor,
    blocks: Iterable[KeyBlock],
    k: int,
    config: RoutingConfig,
    *,
    tile_chunks: int = TILE_CHUNKS,
    tile_tokens: int = TILE_TOKENS,
    kernels: Backend = "auto",
) -> RoutedDocuments:
    """The k best documents of each row, exactly.

    `queries` [B, H, T, D] for one key group, normalised and scaled by the caller as `config` says (a shared selection:
    the layers' heads one after the other), or already collapsed [B, T, W]; `mask` bool [B, T], the voting tokens.
    `blocks` are read once, in order; keys float16, bfloat16, float32 or int8 with scales, [C, W], on any device: the
    products run in float32 on the queries' device. Documents that a block does not allow are never returned, and their
    keys are not read: what others store beside one's documents costs a look at the mask. A key that is NaN never wins.
    Blocks on the queries' device are searched by one kernel each where `kernels` allows it (`msa_kernels.use_triton`).

    Returns int64 and float32 [B, k'], k' = min(k, allowed documents). Raises InvalidQueryError for k < 1, tiles < 1,
    and questions or blocks that do not fit `config`; BackendUnavailableError where `kernels` is "triton" and it cannot.
    """
    if k < 1:
        raise InvalidQueryError(f"k must be at least 1, not {k}")
    by_kernel = use_triton("routing", kernels, [queries], without_kernel(config))
    fused = FusedSearch(queries, mask, config, k, tile_tokens) if by_kernel else None
    tiled = None if fused else _ChunkScorer(queries, mask, config, tile_chunks, tile_tokens)
    best = _TopK(k, queries.shape[0], queries.device)
    for block in blocks:
        if fused and fused.takes(block):
            best.merge(*fused.search(block))
            continue
        tiled = tiled or _ChunkScorer(queries, mask, config, tile_chunks, tile_tokens)
        for span, scores in tiled.scan(block):
            _offer(best, span, scores, config)
    return best.result()


@dataclass(frozen=True)
class KeySearch:
    """Settings of a memory's searches; `tier` keeps keys on the compute device between them."""

    tier: KeyTier
    tile_chunks: int = TILE_CHUNKS
    tile_tokens: int = TILE_TOKENS
    kernels: Backend = "auto"

    @classmethod
    def of(cls, tier: KeyTier, config: MemoryConfig) -> KeySearch:
        """As a memory's settings say."""
        return cls(tier, config.tile_chunks, config.tile_tokens, config.kernels)

    def route(
        self, queries: Tensor, votes: Tensor, blocks: Iterable[KeyBlock], k: int, config: RoutingConfig
    ) -> RoutedDocuments:
        """`route` over a bank's blocks."""
        return route(
            queries,
            votes,
            self.tier.blocks(blocks, self.tile_chunks),
            k,
            config,
            tile_chunks=self.tile_chunks,
            tile_tokens=self.tile_tokens,
            kernels=self.kernels,
        )


class _ChunkScorer:
    """Chunk scores of one question against tile after tile, in a workspace that is allocated once."""

    def __init__(
        self, queries: Tensor, mask: Tensor, config: RoutingConfig, tile_chunks: int, tile_tokens: int
    ) -> None:
        if tile_chunks < 1 or tile_tokens < 1:
            raise InvalidQueryError(f"tiles must hold at least 1, not {tile_chunks} chunks and {tile_tokens} tokens")
        self.config, self.tile_chunks, self.tile_tokens = config, tile_chunks, tile_tokens
        self.width = key_width(config)
        self.device = queries.device
        self._voting: Voters = voters(queries, mask, config, tile_tokens)
        first = next(token_tiles(self._voting, config, tile_tokens))
        single = first.rows == slice(0, queries.shape[0]) and first.shape[2] == self._voting.queries.shape[-2]
        self._only = first if single else None
        height = first.parts.shape[1]
        self._rows = _panel_rows(self.width, height, self.device, tile_chunks)
        self._panel = torch.empty((self._rows, self.width), device=self.device)
        self._panel_t = self._panel.T
        self._gathered = torch.empty((0, self.width), device=self.device)
        self._products = torch.empty((min(2, first.parts.shape[0]), height, self._rows), device=self.device)
        self._scores = torch.empty((queries.shape[0], 0), device=self.device)

    def scan(self, block: KeyBlock) -> Iterator[tuple[ChunkSpan, Tensor]]:
        """Walk a block: a span with its chunk scores [B, c]; a document larger than a tile comes with its score [B, 1].

        The scores are valid until the next step.
        """
        check_block(block, self.width)
        wide = -(-min(self.tile_chunks, block.keys.shape[0]) // self._rows) * self._rows
        if self._scores.shape[1] < wide:
            self._scores = self._scores.new_empty((self._scores.shape[0], wide))
        for span in spans(block, self.tile_chunks):
            yield span, self._tile(block, span.rows) if span.fits else self._large(block, span.rows)

    def _large(self, block: KeyBlock, rows: slice | Tensor) -> Tensor:
        """Score [B, 1] of one document with more chunks than a tile, carried across tiles."""
        mean = self.config.chunk_reduce == "mean"
        total: Tensor | None = None
        assert isinstance(rows, slice)  # one document lies in one piece
        for start in range(rows.start, rows.stop, self.tile_chunks):
            scores = self._tile(block, slice(start, min(start + self.tile_chunks, rows.stop)))
            part = scores.sum(1, keepdim=True) if mean else _without_nan(scores).amax(1, keepdim=True)
            total = part if total is None else (total + part if mean else torch.maximum(total, part))
        assert total is not None
        return _without_nan(total / (rows.stop - rows.start) if mean else total)

    def _tile(self, block: KeyBlock, rows: slice | Tensor) -> Tensor:
        """Chunk scores [B, c] of the keys at `rows`, a tile of them; those of keys that are NaN are NaN."""
        count = rows.stop - rows.start if isinstance(rows, slice) else rows.shape[0]
        if count == 0:  # documents without chunks
            return self._scores[:, :0]
        tiles = (self._only,) if self._only is not None else token_tiles(self._voting, self.config, self.tile_tokens)
        for tile in tiles:
            single = tile.plain and tile.parts.shape[:2] == (1, 1)
            left = tile.parts[0]
            # Whole panels of scores, leftovers included: the buffer is padded, and a slice less per product counts.
            columns = torch.split(self._scores[tile.rows], self._rows, 1)
            for part, out in zip(self._panels(block.keys, rows), columns, strict=False):
                panel = self._load(part)
                if single:
                    torch.mm(left, panel, out=out)
                else:
                    self._product(tile, panel, out)
        scores = self._scores[:, :count]
        # A scale is positive: it may as well be multiplied after the maximum over tokens, or their mean, as before.
        return scores if block.scales is None else scores.mul_(block.scales[rows].to(self.device))

    def _panels(self, keys: Tensor, rows: slice | Tensor) -> Iterator[Tensor]:
        """The keys at `rows`, a panel's height at a time; gathered only where they do not lie side by side."""
        if isinstance(rows, slice):
            yield from torch.split(keys[rows], self._rows)
            return
        if self._gathered.dtype != keys.dtype or self._gathered.device != keys.device:
            self._gathered = keys.new_empty((self._rows, self.width))
        for part in torch.split(rows, self._rows):
            first, last = int(part[0]), int(part[-1])
            if last - first < part.shape[0]:
                yield keys[first : last + 1]
            else:
                out = self._gathered[: part.shape[0]]
                yield torch.index_select(keys, 0, part.to(keys.device), out=out)

    def _load(self, rows: Tensor) -> Tensor:
        """The keys as float32 [W, R] on the device.

        R is always the panel's height, so that equal keys get equal products wherever they lie (libraries add up
        in another order for other heights); columns past the end hold leftovers, whose products nobody reads.
        """
        if rows.shape[0] < self._rows:
            self._panel[: rows.shape[0]].copy_(rows)
        elif rows.dtype == torch.float32 and rows.device == self.device:
            return rows.T
        else:
            self._panel.copy_(rows)
        return self._panel_t

    def _product(self, tile: TokenTile, panel: Tensor, out: Tensor) -> None:
        """Scores of a panel [W, R] for one tile of tokens, reduced over heads and tokens into `out` [g, R]."""
        parts, height, dim = tile.parts.shape
        best, other = self._products[0, :height], self._products[-1, :height]
        torch.mm(tile.parts[0], panel[:dim], out=best)
        for i in range(1, parts):
            torch.mm(tile.parts[i], panel[i * dim : (i + 1) * dim], out=other)
            torch.maximum(best, other, out=best)
        if tile.plain:
            torch.amax(best, 0, keepdim=True, out=out)
            return
        by_head = best.view(*tile.shape, -1)
        _combine(tile, by_head[:, 0] if tile.shape[1] == 1 else by_head.amax(1), out)


def _panel_rows(width: int, height: int, device: torch.device, tile_chunks: int) -> int:
    """Chunks per product: panel and products fit the caches of the threads at work; a GPU takes a whole tile."""
    needed = -(-tile_chunks // 64)
    if device.type != "cpu":
        return 64 * min(needed, 1024)
    budget = PANEL_NUMBERS * torch.get_num_threads()
    return 64 * min(needed, max(1, budget // max(width, height) // 64))


def _reaching(scores: Tensor, bar: Tensor) -> Tensor:
    """Columns of [B, n] in which some row reaches its bar [B, 1]: int64 [m]."""
    hits = scores >= bar
    return (hits[0] if hits.shape[0] == 1 else hits.any(0)).nonzero()[:, 0]


def _without_nan(scores: Tensor) -> Tensor:
    return scores.masked_fill_(scores.isnan(), -torch.inf)


def _combine(tile: TokenTile, by_token: Tensor, out: Tensor) -> None:
    """Reduce [g, t, c] over tokens into `out` [g, c], on top of what earlier tiles of these rows left there."""
    if tile.share is not None:
        part = (tile.share @ by_token)[:, 0]
        out.copy_(part if tile.first else out + part)
        return
    if tile.silent is not None:
        by_token = by_token.masked_fill(tile.silent, -torch.inf)
    part = by_token[:, 0] if by_token.shape[1] == 1 else by_token.amax(1)
    out.copy_(part if tile.first else torch.maximum(out, part))


def _documents(span: ChunkSpan, scores: Tensor, config: RoutingConfig) -> tuple[Tensor, Tensor]:
    """Scores [B, n] and ordinals [n] of the documents of a span."""
    ordinals = span.ordinals.to(scores.device)
    if not span.fits:
        return scores, ordinals
    return _segments(scores, (span.offsets - span.offsets[0]).to(scores.device), config.chunk_reduce), ordinals


def _segments(scores: Tensor, offsets: Tensor, how: str) -> Tensor:
    """[B, c] -> [B, n] over each document's chunks, as a fresh tensor."""
    if offsets.shape[0] == scores.shape[1] + 1 and bool((offsets.diff() == 1).all()):
        return _without_nan(scores.clone())
    initial = -torch.inf if how == "max" else None
    # A maximum would hand one NaN on to its document; the sum of a mean does so anyway.
    scores = _without_nan(scores) if how == "max" else scores
    reduced = [torch.segment_reduce(row, how, offsets=offsets, initial=initial, unsafe=True) for row in scores]
    return _without_nan(torch.stack(reduced))


def _offer(best: _TopK, span: ChunkSpan, scores: Tensor, config: RoutingConfig) -> None:
    """Offer a span's documents; once k are held, only those with a chunk that reaches the k-th score."""
    bar = best.bar()
    if bar is None or not span.fits or config.chunk_reduce == "mean":
        best.offer(*_documents(span, scores, config))
        return
    # A document's best chunk decides, so chunks below every row's bar need no reduction to documents at all.
    # (A NaN reaches no bar.)
    chunks = _reaching(scores, bar)
    if chunks.numel() == 0:
        return
    offsets = span.offsets.to(scores.device)
    owner = torch.searchsorted(offsets, chunks + offsets[0], right=True) - 1
    documents, inverse = torch.unique_consecutive(owner, return_inverse=True)
    reduced = scores.new_full((scores.shape[0], documents.shape[0]), -torch.inf)
    reduced.scatter_reduce_(1, inverse.expand(scores.shape[0], -1), scores[:, chunks], "amax")
    best.offer(reduced, span.ordinals.to(scores.device)[documents])


class _TopK:
    """Running best k documents per row."""

    def __init__(self, k: int, rows: int, device: torch.device) -> None:
        self.k = k
        self._scores = torch.empty((rows, 0), device=device)
        self._ordinals = torch.empty((rows, 0), dtype=torch.int64, device=device)
        self._highest = -1

    def bar(self) -> Tensor | None:
        """The k-th score [B, 1] of each row, or None while fewer are held."""
        return self._scores[:, -1:] if self._scores.shape[1] == self.k else None

    def offer(self, scores: Tensor, ordinals: Tensor) -> None:
        """Merge documents `ordinals` [n], ascending, with scores [B, n]."""
        bar = self.bar()
        if ordinals.shape[0] > 2 * self.k:
            own = scores.topk(self.k).values[:, -1:]
            bar = own if bar is None else torch.maximum(bar, own)
        if bar is not None:
            # Ties with the bar included: what is left to sort is small, and its order decides the ties.
            kept = _reaching(scores, bar)
            scores, ordinals = scores[:, kept], ordinals[kept]
        if ordinals.shape[0] == 0:
            return
        lowest, highest = int(ordinals[0]), int(ordinals[-1])
        self.merge(scores, ordinals.expand(scores.shape[0], -1), ascending=lowest > self._highest)
        self._highest = max(self._highest, highest)

    def merge(self, scores: Tensor, ordinals: Tensor, *, ascending: bool = False) -> None:
        """Merge documents with scores and ordinals [B, n] a row; `ascending`: in order, and behind those held."""
        merged = torch.cat((self._scores, scores), 1)
        names = torch.cat((self._ordinals, ordinals.to(merged.device)), 1)
        if not ascending:
            # Restore ascending ordinals, on which the stable sort below relies for ties.
            names, order = names.sort(1)
            merged = merged.gather(1, order)
        order = merged.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self._scores, self._ordinals = merged.gather(1, order), names.gather(1, order)

    def result(self) -> RoutedDocuments:
        """What is held."""
        return RoutedDocuments(self._ordinals, self._scores)
