"""Documents that carry their number: `<|im_start|>[i]. TEXT[i]<|im_end|>` (golden spec 3.1).

A document's number is its ordinal in the bank, counted from 0, so it lasts as long as the document. A model that was
trained on numbers of a certain width sees no longer ones: beyond them numbers start again, and a question's candidates
are told apart among themselves (see `generative.ids`).
"""

from __future__ import annotations

from functools import lru_cache

from msa_plugin import prompts
from msa_plugin.backbone.adapter import AdapterConfig
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.positions import WindowLayout

FIRST_ORDINAL = 1  # SQLite counts rows from 1, the reference documents from 0


class Numbering:
    """Wraps documents in markers and their numbers, as token ids; `width` is how many digits a number may have."""

    def __init__(self, backbone: Backbone, width: int | None) -> None:
        """Raises ConfigError when the tokenizer lacks the markers."""
        self.backbone, self.width = backbone, width
        self.start = backbone.special(prompts.TURN_START)
        self.end = backbone.special(prompts.TURN_END)
        self._wrapping = lru_cache(maxsize=4096)(self._tokenized)

    @classmethod
    def of(cls, backbone: Backbone, config: AdapterConfig) -> Numbering | None:
        """The numbering that an adapter was trained with, if any."""
        return cls(backbone, config.id_width) if config.numbered else None

    def number(self, ordinal: int) -> int:
        """The number that document `ordinal` carries."""
        number = ordinal - FIRST_ORDINAL
        return number % 10**self.width if self.width else number

    def fits(self, last_ordinal: int) -> bool:
        """Whether every document up to `last_ordinal` has a number of its own."""
        return self.width is None or last_ordinal - FIRST_ORDINAL < 10**self.width

    def windows(self, text: str, ordinal: int, window: int) -> tuple[list[list[int]], int]:
        """A document's windows of at most `window` token ids, and how many of those are text.

        One that fits is tokenised in one piece with its number, as in training; the windows of a longer one all
        carry the number.
        """
        number = self.number(ordinal)
        head, tail = self._wrapping(number)
        around = 2 + len(head) + len(tail)
        whole = self.backbone.tokenize(prompts.numbered(number, text))
        if len(whole) + 2 <= window:
            return [[self.start, *whole, self.end]], max(1, len(whole) + 2 - around)
        body, size = self.backbone.tokenize(f" {text}"), window - around
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        return [[self.start, *head, *piece, *tail, self.end] for piece in pieces], len(body)

    def layout(self, window: int, ordinal: int) -> WindowLayout:
        """Where a document's tokens end up."""
        head, tail = self._wrapping(self.number(ordinal))
        return WindowLayout(window, 1 + len(head), 1 + len(tail))

    def _tokenized(self, number: int) -> tuple[list[int], list[int]]:
        head, tail = self.backbone.tokenize_batch([prompts.numbered_head(number), prompts.numbered_tail(number)])
        return head, tail
