"""The seam between the engine and whoever scores routing keys: this process, or one for each shard of a bank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.bank.view import Selection
from msa_plugin.config import RoutingConfig
from msa_plugin.retrieval.mentions import Mention, holders
from msa_plugin.retrieval.names import Named, TextNames
from msa_plugin.retrieval.postings import Words, word_scores
from msa_plugin.retrieval.prefilter import Prefilter, PrefilterSpec
from msa_plugin.retrieval.ranking import Ranked, SharedQueries, score_breakdown
from msa_plugin.retrieval.scorer import KeySearch, RoutedDocuments


class Index(Protocol):
    """A prefilter that is ready: one in this process (`Prefilter`), or one in every shard.

    It covers so many `documents`, and takes so many `bytes` of memory, wherever that is.
    """

    @property
    def documents(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class Search(Protocol):
    """Finds the documents whose routing keys fit best, exactly; ties go to the lower ordinal.

    `BankSearch` says what each method does.
    """

    def ranked(
        self, asked: SharedQueries, k: int, selection: Selected, prefilter: Index | None
    ) -> list[list[Ranked]]: ...
    def route(self, layer: int, queries: Tensor, votes: Tensor, k: int, selection: Selected) -> RoutedDocuments: ...
    def words(self, texts: Sequence[str], selection: Selected) -> list[Words]: ...
    def names(self, texts: Sequence[str], selection: Selected, *, any_case: bool) -> list[Named]: ...
    def holders(self, wanted: Sequence[Mention], selection: Selected, most: int) -> list[list[int]]: ...
    def prefilter(self, spec: PrefilterSpec | str, folder: Path, selection: Selected) -> Index: ...


class BankSearch:
    """Search in this process, over the memory maps of one bank."""

    def __init__(self, bank: BankHandle, config: RoutingConfig, search: KeySearch) -> None:
        """`search` says where keys are kept, and in which tiles and by which kernels they are read."""
        self.bank, self.config, self.search = bank, config, search

    def ranked(
        self, asked: SharedQueries, k: int, selection: Selected, prefilter: Index | None = None
    ) -> list[list[Ranked]]:
        """The best `k` of each row by the score summed over routing layers, taken apart.

        With a `prefilter` these are the best of the candidates that it names, which may miss documents.
        """
        queries, votes = asked.queries, asked.votes
        if prefilter is None:
            routed = self.search.route(queries, votes, selection.key_blocks("shared"), k, self.config)
            rows = [*zip(*routed, strict=True)]
        else:
            assert isinstance(prefilter, Prefilter) and isinstance(selection, Selection)
            tiles = {"tile_chunks": self.search.tile_chunks, "tile_tokens": self.search.tile_tokens}
            found = prefilter.search(queries, votes, selection, k, **tiles)
            rows = [(one.ordinals[0], one.scores[0]) for one in found]
        return [
            score_breakdown(self.bank, self.config, asked.of(row), ordinals.tolist(), scores.tolist())
            for row, (ordinals, scores) in enumerate(rows)
        ]

    def route(self, layer: int, queries: Tensor, votes: Tensor, k: int, selection: Selected) -> RoutedDocuments:
        """The best `k` of each row at one layer; `queries` [B, H, T, D], `votes` bool [B, T]."""
        return self.search.route(queries, votes, selection.key_blocks(str(layer)), k, self.config)

    def words(self, texts: Sequence[str], selection: Selected) -> list[Words]:
        """BM25 of a selection's documents for each text, counted over that selection alone."""
        return word_scores(texts, self.bank.words(selection))

    def names(self, texts: Sequence[str], selection: Selected, *, any_case: bool) -> list[Named]:
        """Documents of a selection that each text names by their titles; see `TextNames`."""
        parts = self.bank.words(selection)
        asked = [TextNames(text, any_case=any_case) for text in texts]
        return [names.chosen(names.runs(parts)) for names in asked]

    def holders(self, wanted: Sequence[Mention], selection: Selected, most: int) -> list[list[int]]:
        """Documents of a selection that have all words of each name; of more than `most` at least `most` + 1."""
        return holders(wanted, self.bank.words(selection), most) if wanted else []

    def prefilter(self, spec: PrefilterSpec | str, folder: Path, selection: Selected) -> Prefilter:
        """An index over `selection`, kept in `folder`. Raises ConfigError and MissingExtraError."""
        assert isinstance(selection, Selection)
        return Prefilter.open(folder, self.bank.fingerprint, selection, self.config, spec)
