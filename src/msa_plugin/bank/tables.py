"""Words and names of the segments that a question sees: as segments keep them, or counted here from their texts.

A bank of an older format keeps none, and one of another tokeniser none that may be used: each of its segments is then
counted when a question first sees it, and kept in memory as long as the segment is. `msa bank migrate` ends that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import Tensor

from msa_plugin.bank.scopes import batches
from msa_plugin.bank.segment import Segment
from msa_plugin.bank.words import WordPart, WordTable

_LOG = logging.getLogger(__name__)
Texts = Callable[[Sequence[int]], list[tuple[str, str]]]  # title and text of documents by ordinal


class Tables:
    """Of one bank. Safe to share among threads."""

    def __init__(self, folder: Path) -> None:
        """Of the bank in `folder`."""
        self._folder, self._lock, self._told = folder, threading.Lock(), False
        self._counted: WeakKeyDictionary[Segment, WordTable] = WeakKeyDictionary()

    def parts(self, parts: Sequence[tuple[Segment, Tensor | None]], texts: Texts) -> list[WordPart]:
        """One for each of a selection's parts. Raises BankCorruptError."""
        return [
            WordPart(
                segment.words or self._from_texts(segment, texts),
                segment.ordinals.numpy(),
                None if allowed is None else allowed.numpy(),
            )
            for segment, allowed in parts
        ]

    def _from_texts(self, segment: Segment, texts: Texts) -> WordTable:
        with self._lock:
            found = self._counted.get(segment)
            if found is None:
                self._tell()
                portions = batches(segment.ordinals.tolist())
                found = self._counted[segment] = WordTable.of(chain.from_iterable(map(texts, portions)))
        return found

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            _LOG.warning(
                "%s keeps no words and names that this version can use: texts are read when a question first sees "
                "them. `msa bank migrate --bank %s` once stores them, and first questions are fast",
                self._folder,
                self._folder,
            )
