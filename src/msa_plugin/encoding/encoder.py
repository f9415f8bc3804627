"""Global memory encoding (paper section 3.2; golden spec section 3): documents to routing keys and content K, V.

Every document is encoded alone, at positions from 0, in windows that are independent of each other, and only as deep
as the deepest layer of which something is kept. Shapes: T tokens, C chunks, W routing-key width, KV heads of D.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from msa_kernels import chunk_offsets, pool_chunks
from msa_plugin.backbone.attention import ActivationRecorder, CausalRows
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.positions import WindowLayout
from msa_plugin.backbone.router import Router
from msa_plugin.bank.quantize import quantized_content, stored_content, stored_keys
from msa_plugin.cancellation import check_cancelled
from msa_plugin.config import ContentConfig
from msa_plugin.encoding.numbering import Numbering
from msa_plugin.prompts import document_text
from msa_plugin.types import Document, EncodedDocument

# Windows read ahead, in batches' worth of tokens, so that windows of like length can share a batch; and how many bytes
# of latents may wait meanwhile, which is what bounds it where every token's K and V are kept.
_LOOKAHEAD_BATCHES = 16
_LOOKAHEAD_BYTES = 128 << 20


@dataclass(frozen=True)
class WindowLatents:
    """What is kept of one window: routing keys by key group [C, W], and content by layer [C', 2, KV, D]."""

    keys: dict[str, Tensor]
    content: dict[int, Tensor]


class WindowRecorder(ActivationRecorder):
    """Pools states of a batch of windows as the forward produces them, so that no layer's states are kept whole."""

    def __init__(self, router: Router, content: ContentConfig | None, ids: Tensor, mask: Tensor) -> None:
        """`ids` and `mask` [B, T], right padded; nothing is pooled across rows."""
        self.router, self.content, self.mask = router, content, mask
        self.ids = ids[mask]
        self.lengths = mask.sum(1)
        self.key_offsets, self.key_chunks = chunk_offsets(self.lengths, router.config.pooling)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        layers = list(router.config.layers) + (list(content.layers) if content else [])
        self.deepest = max(layers)
        # A projection router needs only the layer's input; K and V need its projections too.
        self._input_is_enough = router.config.source == "projection" and not (
            content and self.deepest in content.layers
        )
        if content:
            self.content_offsets, self.content_chunks = chunk_offsets(self.lengths, content.pooling)
        self._input: Tensor | None = None  # of the layer at work, where it is pooled with its K and V

    def on_input(self, layer: int, hidden: Tensor) -> None:
        """Pool and project the layer's input into routing keys, unless K and V follow to be pooled with it."""
        if self.router.config.source != "projection" or layer not in self.router.config.layers:
            return
        if self._alike(layer):
            self._input = hidden
        else:
            self.keys[layer] = self.router.key_part(layer, hidden[self._at(hidden)], self.ids, self.lengths)

    def on_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Pool K and V [B, KV, T, D] where the bank keeps them, or where K itself is the routing key."""
        kept = self.content is not None and layer in self.content.layers
        if self.router.config.source == "attention" and layer in self.router.config.layers:
            (means,) = self._pool([self._tokens(keys).float()], self.key_offsets)
            self.keys[layer] = means.flatten(1).to(self.mask.device)
        if not kept:
            return
        assert self.content is not None
        parts = [self._tokens(keys), self._tokens(values)]
        if self._input is not None:
            # One pass over the tokens for K, V and what K^R is projected from: pooling and projecting commute.
            parts.append(self._input[self._at(self._input)].to(keys.device, torch.float32))
            *parts, means = self._pool(parts, self.content_offsets)
            self.keys[layer], self._input = self.router.project_keys(layer, means), None
        elif self.content.pooling > 1:
            parts = [*self._pool(parts, self.content_offsets)]
        self.values[layer] = torch.stack(parts, dim=1)

    def _alike(self, layer: int) -> bool:
        """Whether the layer's input is pooled just as its K and V are."""
        config, content = self.router.config, self.content
        if content is None or layer not in content.layers or content.pooling != config.pooling:
            return False
        return content.pooling > 1 and not config.token_weighted and not config.document_mix

    def _pool(self, parts: Sequence[Tensor], offsets: Tensor) -> tuple[Tensor, ...]:
        return pool_chunks(parts, offsets.to(parts[0].device), backend=self.router.kernels)

    def _tokens(self, states: Tensor) -> Tensor:
        """The real tokens [N, KV, D] of `states` [B, KV, T, D]."""
        return states.transpose(1, 2)[self._at(states)]

    def _at(self, states: Tensor) -> Tensor:
        """The real tokens, where `states` are: layers may lie on several devices."""
        return self.mask.to(states.device)

    def done_before(self, layer: int) -> bool:
        """Stop before the deepest layer's attention when only its input was wanted."""
        return self._input_is_enough and layer == self.deepest

    def done_at(self, layer: int) -> bool:
        """Stop once the deepest layer's K and V are pooled: its output would be read by nobody."""
        return layer == self.deepest

    def latents(self, keys_dtype: torch.dtype, content_dtype: torch.dtype | None) -> list[WindowLatents]:
        """One `WindowLatents` a row, on the CPU: keys in `keys_dtype`, content in `content_dtype` (None: as it is)."""
        split_keys = {
            name: keys.cpu().split_with_sizes(self.key_chunks.tolist())
            for name, keys in stored_keys(self.router.finish_keys(self.keys), keys_dtype).items()
        }
        split_content = {
            layer: stored_content(values, content_dtype).cpu().split_with_sizes(self.content_chunks.tolist())
            for layer, values in self.values.items()
        }
        rows = range(self.mask.shape[0])
        return [
            WindowLatents({n: k[row] for n, k in split_keys.items()}, {n: v[row] for n, v in split_content.items()})
            for row in rows
        ]


@dataclass
class _Pending:
    document: Document
    windows: list[list[int]]
    tokens: int
    latents: list[WindowLatents | None] = field(default_factory=list)


class Encoder:
    """Turns documents into `EncodedDocument`s, in input order, with memory bounded by the look-ahead."""

    def __init__(
        self,
        backbone: Backbone,
        router: Router,
        content: ContentConfig | None,
        *,
        prefix: Sequence[int] = (),
        window: int = 2048,
        batch_tokens: int = 4096,
        keys_dtype: torch.dtype = torch.float16,
        content_dtype: torch.dtype | None = None,
        numbering: Numbering | None = None,
        lora: Lora | None = None,
        content_lora: Lora | None = None,
    ) -> None:
        """`prefix` ids start every window; `window` and `batch_tokens` are in tokens, prefix included.

        With a `numbering`, documents carry their numbers; see `encode`. Keys come from forwards with `lora` and content
        from forwards with `content_lora`: from the same one where it is the same.
        """
        self.backbone, self.router, self.content = backbone, router, content
        self.lora, self.content_lora = lora, content_lora
        self.prefix = list(prefix)
        self.layout = WindowLayout(window, len(self.prefix))
        self.batch_tokens, self.numbering = batch_tokens, numbering
        self.keys_dtype, self.content_dtype = keys_dtype, content_dtype

    def encode(self, documents: Iterable[Document], ordinals: int | Iterable[int] = 0) -> Iterator[EncodedDocument]:
        """Encode a stream of documents; reads ahead about `lookahead` tokens and no further.

        `ordinals` are those that they will get, or the first of them if the others are the next ones.
        """
        pool: list[_Pending] = []
        tokens = 0
        numbers = count(ordinals) if isinstance(ordinals, int) else ordinals
        for ordinal, document in zip(numbers, documents, strict=False):
            windows, own = self._cut(document_text(document.title, document.text), ordinal)
            pool.append(_Pending(document, windows, own))
            tokens += sum(map(len, windows))
            if tokens >= self.lookahead:
                yield from self._finish(pool)
                pool, tokens = [], 0
        if pool:
            yield from self._finish(pool)

    @property
    def lookahead(self) -> int:
        """Tokens read ahead: sixteen batches, or fewer where their latents would take more than 128 MiB."""
        spec, content = self.backbone.spec, self.content
        keys = sum(self.router.config.key_groups.values()) * self.keys_dtype.itemsize / self.router.config.pooling
        width = 2 * spec.kv_heads * spec.head_dim * self.backbone.dtype.itemsize
        kept = keys + (len(content.layers) * width / content.pooling if content else 0)
        return min(_LOOKAHEAD_BATCHES * self.batch_tokens, max(self.batch_tokens, int(_LOOKAHEAD_BYTES / kept)))

    def layout_of(self, ordinal: int) -> WindowLayout:
        """Where the tokens of document `ordinal` ended up."""
        return self.layout if self.numbering is None else self.numbering.layout(self.layout.window, ordinal)

    def _cut(self, text: str, ordinal: int) -> tuple[list[list[int]], int]:
        """A document's windows, and how many of their tokens are its own."""
        if self.numbering is not None:
            return self.numbering.windows(text, ordinal, self.layout.window)
        windows = self.windows(self.backbone.tokenize(text))
        return windows, sum(len(w) - len(self.prefix) for w in windows)

    def windows(self, ids: list[int]) -> list[list[int]]:
        """Cut a document's ids into consecutive windows, each with the prefix; never returns an empty list."""
        size = self.layout.text
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)] or [[]]
        return [self.prefix + piece for piece in pieces if self.prefix or piece]

    def encode_windows(self, windows: Sequence[list[int]]) -> list[WindowLatents]:
        """Latents of each window of token ids, in order; windows of like length share a forward."""
        result: list[WindowLatents | None] = [None] * len(windows)
        for batch in plan_batches([len(w) for w in windows], self.batch_tokens):
            check_cancelled()
            for index, latents in zip(batch, self._forward([windows[i] for i in batch]), strict=True):
                result[index] = latents
        return [latents for latents in result if latents is not None]

    def _finish(self, pool: list[_Pending]) -> Iterator[EncodedDocument]:
        flat = [window for pending in pool for window in pending.windows]
        latents = iter(self.encode_windows(flat))
        for pending in pool:
            keys, content = _joined([next(latents) for _ in pending.windows])
            # A document's scales are of all its windows.
            numbers, scales = quantized_content(content) if self.content_dtype == torch.int8 else (content, {})
            yield EncodedDocument(pending.document, pending.tokens, keys, numbers, scales)

    def _forward(self, windows: list[list[int]]) -> list[WindowLatents]:
        ids, mask = pad_right(windows, self.backbone.device)
        if self.content is None or self.lora is self.content_lora:
            return self._run(ids, mask, self.content, self.lora)
        keys = self._run(ids, mask, None, self.lora)
        content = self._run(ids, mask, self.content, self.content_lora)
        return [replace(mine, content=theirs.content) for mine, theirs in zip(keys, content, strict=True)]

    def _run(self, ids: Tensor, mask: Tensor, content: ContentConfig | None, lora: Lora | None) -> list[WindowLatents]:
        recorder = WindowRecorder(self.router, content, ids, mask)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        self.backbone.run(CausalRows(recorder=recorder, lora=lora), ids, mask, positions, logits="none")
        return recorder.latents(self.keys_dtype, None if self.content_dtype == torch.int8 else self.content_dtype)


def _joined(parts: list[WindowLatents]) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    if len(parts) == 1:
        return parts[0].keys, parts[0].content
    keys = {name: torch.cat([p.keys[name] for p in parts]) for name in parts[0].keys}
    content = {layer: torch.cat([p.content[layer] for p in parts]) for layer in parts[0].content}
    return keys, content


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped so that like lengths share a batch and rows * longest <= budget (a longer row goes alone)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        current = batches[-1] if batches else None
        if current is not None and (len(current) + 1) * lengths[current[0]] <= budget:
            current.append(index)
        else:
            batches.append([index])
    return batches


def pad_right(rows: Sequence[Sequence[int]], device: torch.device, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and bool mask [B, T] of right-padded rows."""
    longest = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (longest - len(row)) for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(longest)[None, :] < lengths[:, None]
    return ids.to(device), mask.to(device)


def pad_left(rows: Sequence[Sequence[int]], device: torch.device, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and bool mask [B, T] of left-padded rows, whose last column is every row's last token."""
    ids, mask = pad_right([list(reversed(row)) for row in rows], device, pad)
    return ids.flip(1), mask.flip(1)
