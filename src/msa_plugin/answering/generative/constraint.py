"""Decoding under a constraint: a list of numbers in brackets, of documents that may be named, and its end.

The automaton runs over characters, so it holds however a tokenizer cuts numbers and brackets into tokens, and the
numbers are one sorted array, so it costs the same with millions of documents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PART = re.compile(r"[\[\]0-9]+")


@dataclass(frozen=True)
class IdVocabulary:
    """Token ids made of nothing but digits and brackets, with their text."""

    tokens: Mapping[int, str]

    @classmethod
    def of(cls, backbone: Backbone) -> IdVocabulary:
        """Raises ConfigError for a tokenizer that cannot write every number."""
        assert backbone.tokenizer is not None, "whoever writes ids has looked up markers"
        special = set(backbone.tokenizer.all_special_ids)
        vocabulary = backbone.tokenizer.get_vocab().items()
        tokens = {index: text for text, index in vocabulary if _PART.fullmatch(text) and index not in special}
        missing = set("[]0123456789") - set(tokens.values())
        if missing:
            raise ConfigError(f"the tokenizer of {backbone.name} has no tokens for {' '.join(sorted(missing))}")
        return cls(tokens)


class IdList:
    """A list `[3][14]` as it is written: each number is that of a document, once, and at most `limit` of them."""

    def __init__(self, vocabulary: IdVocabulary, numbers: NDArray[np.int64], limit: int) -> None:
        """`numbers` ascending."""
        self._vocabulary, self._numbers, self._limit = vocabulary, numbers, limit
        self.chosen: list[int] = []
        self._digits: str | None = None  # of the number being written

    @property
    def between(self) -> bool:
        """Whether no number is half written, so that the list may end."""
        return self._digits is None

    def allowed(self) -> list[int]:
        """Tokens that may come next, other than the list's end."""
        return [token for token, text in self._vocabulary.tokens.items() if self._after(text) is not None]

    def take(self, token: int) -> None:
        """Write an allowed token."""
        after = self._after(self._vocabulary.tokens[token])
        assert after is not None, "a token was taken that is not allowed"
        self.chosen, self._digits = after

    def _after(self, text: str) -> tuple[list[int], str | None] | None:
        """Numbers and open digits after `text`, or None where it may not follow."""
        chosen, digits = list(self.chosen), self._digits
        for character in text:
            if digits is None:
                if character != "[" or len(chosen) >= self._limit or not self._left("", chosen):
                    return None
                digits = ""
            elif character == "]":
                if not digits or int(digits) in chosen or not self._holds(int(digits)):
                    return None
                chosen.append(int(digits))
                digits = None
            elif character == "[" or not self._left(digits + character, chosen):
                return None
            else:
                digits += character
        return chosen, digits

    def _holds(self, number: int) -> bool:
        at = int(np.searchsorted(self._numbers, number))
        return at < len(self._numbers) and int(self._numbers[at]) == number

    def _left(self, digits: str, chosen: list[int]) -> bool:
        """Whether a number that begins with `digits`, without leading zeros, is still to be had."""
        taken = sum(str(number).startswith(digits) for number in chosen)
        return self._beginning_with(digits) > taken

    def _beginning_with(self, digits: str) -> int:
        if not digits:
            return len(self._numbers)
        if digits[0] == "0":
            return int(digits == "0" and self._holds(0))
        low, high = int(digits), int(digits) + 1
        count, largest = 0, int(self._numbers[-1]) if len(self._numbers) else -1
        while low <= largest:
            first, last = np.searchsorted(self._numbers, [low, high])
            count += int(last - first)
            low, high = low * 10, high * 10
        return count
