"""Decoding under another constraint: every word is one of the passages that were read, and follows where it may.

The automaton runs over characters, so that it does not matter how a tokenizer cuts the passages. Shapes: B rows, V
vocabulary.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

from torch import Tensor

from msa_plugin import prompts
from msa_plugin.answering.grounding import SPACELESS, grounded
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.types import Source

_LONGEST = 24  # characters of a token; longer ones are not looked for
_WORD, _ALONE = re.compile(r"\w"), re.compile(rf"[{SPACELESS}]")


class Spellings:
    """A vocabulary by what its tokens add to a text."""

    def __init__(self, backbone: Backbone) -> None:
        """Nothing is read yet: most answers never need it."""
        self.backbone = backbone

    @cached_property
    def tokens(self) -> dict[str, list[int]]:
        """Tokens by the text that they add, of those that are whole characters.

        Each is read behind a letter: some tokenizers drop the space that a text begins with.
        """
        backbone, found = self.backbone, defaultdict(list)
        assert backbone.tokenizer is not None
        before = backbone.tokenize("a")[-1]
        for token in range(len(backbone.tokenizer)):
            text = backbone.detokenize([before, token])
            if len(text) > 1 and "\ufffd" not in text and token not in backbone.end_ids:
                found[text[1:]].append(token)
        return found


class Copied:
    """What has been written of one answer, as the places of the passages where it may go on."""

    def __init__(self, spellings: Spellings, passages: Sequence[str]) -> None:
        """Nothing is written yet. Blanks are one space."""
        self._spellings = spellings
        self._text = "\n".join(" ".join(passage.split()) for passage in passages) + "\n"
        self._starts = [at for at in range(len(self._text)) if self._is_word(at) and self._is_edge(at)]
        self._places: set[int] | None = None  # after the last character written; None: nothing is
        self._next: dict[int, set[int]] = {}

    def allowed(self, ends: Collection[int]) -> list[int]:
        """Tokens that may be next: they go on with the run, or, behind a whole word, begin another or end it all."""
        written = self._places or set()
        whole = any(self._is_edge(at) and not self._text[at - 1 : at].isspace() for at in written if at)
        after: dict[str, set[int]] = defaultdict(set)
        for place in self._starts if self._places is None else self._places:
            for text in self._from(place):
                after[text].add(place + len(text))
        if whole:
            after[" "].update(self._starts)
            for place in self._starts:
                for text in self._from(place):
                    after[f" {text}"].add(place + len(text))
        spelled = self._spellings.tokens
        self._next = {token: places for text, places in after.items() for token in spelled.get(text, ())}
        return [*self._next, *(ends if whole or not self._next else ())]

    def take(self, token: int) -> None:
        """Write a token that was allowed and is no end."""
        self._places = self._next[token]

    def _from(self, place: int) -> Iterator[str]:
        line = self._text.index("\n", place)
        for end in range(place + 1, min(place + _LONGEST, line) + 1):
            yield self._text[place:end]

    def _is_word(self, at: int) -> bool:
        return _WORD.match(self._text, at) is not None

    def _is_edge(self, at: int) -> bool:
        """Whether a word may begin or end in front of a character."""
        if at == 0 or not (self._is_word(at) and self._is_word(at - 1)):
            return True
        return any(_ALONE.match(self._text, one) for one in (at - 1, at))


def may_copy(answer: str, question: str, passages: Sequence[Source]) -> bool:
    """Whether an answer's words should be those of a passage and are not; a number may have been worked out."""
    said = any(character.isalpha() for character in answer) and not prompts.says_absent(answer)
    return said and grounded(answer, question, passages)[0] is False


def constrained(logits: Tensor, copies: Sequence[Copied | None], ends: Collection[int]) -> Tensor:
    """Logits [B, V] of what the copies allow; rows without one as they are."""
    if not copies:
        return logits
    found = logits.clone()
    for row, copy in enumerate(copies):
        if copy is not None:
            allowed = copy.allowed(ends)
            found[row] = float("-inf")
            found[row, allowed] = logits[row, allowed]
    return found
