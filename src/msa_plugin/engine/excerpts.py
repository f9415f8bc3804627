"""What of a found document goes on: a few chunks to the next round's query, or as much as a budget of tokens allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msa_plugin import prompts
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.positions import WindowLayout
from msa_plugin.bank.documents import StoredDocument
from msa_plugin.bank.handle import BankHandle
from msa_plugin.engine.ranking import Ranked
from msa_plugin.engine.reading import Excerpt, allowances, around

# Chunks of a found document that the next round routes on.
_PIECES = 8


class Excerpts:
    """Cuts documents of a bank, long ones around the chunk that scored best."""

    def __init__(
        self, backbone: Backbone, bank: BankHandle, layout_of: Callable[[int], WindowLayout], pooling: int
    ) -> None:
        """`layout_of` an ordinal says where the document's tokens ended up; routing chunks have `pooling` tokens."""
        self._backbone, self._bank, self._layout_of, self._pooling = backbone, bank, layout_of, pooling

    def pieces(self, ranked: Sequence[Ranked]) -> list[tuple[str, list[str]]]:
        """Id and pieces of each document, a chunk long, from around its best chunk."""
        stored, _, tokens = self._tokenized(ranked)
        return [(d.id, self._pieces(r, ids)) for r, d, ids in zip(ranked, stored, tokens, strict=True)]

    def cut(self, ranked: Sequence[Ranked], budget: int) -> tuple[list[Excerpt], dict[int, StoredDocument]]:
        """What of each document fits a budget of tokens, in the order given, and the documents by ordinal."""
        stored, texts, tokens = self._tokenized(ranked)
        granted = allowances([len(t) for t in tokens], budget)
        excerpts = [
            self._excerpt(r, text, ids, size)
            for r, text, ids, size in zip(ranked, texts, tokens, granted, strict=True)
            if size > 0
        ]
        return excerpts, {d.ordinal: d for d in stored}

    def _tokenized(self, ranked: Sequence[Ranked]) -> tuple[list[StoredDocument], list[str], list[list[int]]]:
        stored = self._bank.documents([r.ordinal for r in ranked])
        texts = [prompts.document_text(d.title, d.text) for d in stored]
        return stored, texts, self._backbone.tokenize_batch(texts) if texts else []

    def _pieces(self, ranked: Ranked, ids: list[int]) -> list[str]:
        size = self._pooling
        start, stop = around(self._best_token(ranked), min(_PIECES * size, len(ids)), len(ids))
        return [self._text(ids[at : min(at + size, stop)]) for at in range(start, stop, size)]

    def _excerpt(self, ranked: Ranked, text: str, ids: list[int], size: int) -> Excerpt:
        if size >= len(ids):
            return Excerpt(ranked.ordinal, text, 0, len(ids))
        start, stop = around(self._best_token(ranked), size, len(ids))
        return Excerpt(ranked.ordinal, self._text(ids[start:stop]), start, stop)

    def _best_token(self, ranked: Ranked) -> int:
        return self._layout_of(ranked.ordinal).token_of_chunk(ranked.best_chunk, self._pooling)

    def _text(self, ids: list[int]) -> str:
        """Part of a document as text, without the characters that the cut went through."""
        return self._backbone.detokenize(ids).strip("\ufffd")
