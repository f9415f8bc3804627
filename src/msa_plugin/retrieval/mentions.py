"""Names in a text, and which other documents have them: what links documents that have no titles.

A name is a run of words with capitals ("Anna Veld", "Bank of Kestrel") or a number with what it counts ("412 metres").
Whoever has all of its words counts as having it, so that the words which banks keep are all that is needed: comparing
them as adjacent words found nothing better (docs/experiments).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from msa_plugin.bank.terms import hashed
from msa_plugin.bank.words import Numbers32, WordPart
from msa_plugin.stems import stems

Mention = tuple[str, ...]  # the stems of a name's words, each once

_UNITS = "km|m|kg|mi|miles|feet|ft|acres|people|percent|%|million|billion|metres|meters|kilometers|kilometres"
_CAPITAL = r"[A-ZÀ-ÖØ-ÞΑ-ΩА-Я](?:[\w'\u2019.&-]*\w)?|\d(?:[\w'\u2019.&,-]*\w)?"
_NAME = re.compile(
    rf"(?<!\w)(?:{_CAPITAL})(?:\s+(?:(?:of|the|de|la|von|van)\s+){{0,2}}(?:{_CAPITAL})|\s+(?:{_UNITS})(?!\w))*"
)
_ENDS_SENTENCE = re.compile(r"(?:^|[.!?:;\"“”])\s*$")


def names_in(text: str) -> list[str]:
    """Names, in their order.

    A single word that begins a sentence may be any word, a bare number of up to four digits any year: neither is one.
    """
    found = []
    for match in _NAME.finditer(text):
        name = match[0].strip(".,'\u2019-&")
        alone = not any(map(str.isspace, name))
        if alone and (len(name) < 3 or (name.isdecimal() and len(name) < 5)):
            continue
        if alone and _ENDS_SENTENCE.search(text, max(0, match.start() - 3), match.start()):
            continue
        found.append(name)
    return found


def mentions(texts: Sequence[str]) -> list[list[Mention]]:
    """The distinct names of each text."""
    found = [names_in(text) for text in texts]
    split = iter(stems()([name for names in found for name in names]))
    rows = [dict.fromkeys(tuple(dict.fromkeys(next(split))) for _ in names) for names in found]
    return [[mention for mention in row if mention] for row in rows]


def holders(wanted: Sequence[Mention], parts: Sequence[WordPart], most: int) -> list[list[int]]:
    """Ordinals of a selection's documents that have all words of each name, in the order of `parts`.

    Of a name that more than `most` have, `most` + 1 at least. Raises BankCorruptError.
    """
    words = list(dict.fromkeys(word for mention in wanted for word in mention))
    number = {word: n for n, word in enumerate(words)}
    encoded, hashes = [word.encode() for word in words], hashed(words)
    found: list[list[int]] = [[] for _ in wanted]
    rows = [(holding, [number[word] for word in mention]) for mention, holding in zip(wanted, found, strict=True)]
    for part in parts:
        places = part.table.places(encoded, hashes)
        for holding, columns in rows:
            if len(holding) <= most and min(at := [places[n] for n in columns]) >= 0:
                holding += part.ordinals[_having(part, at)[: most + 1]].tolist()
    return found


def _having(part: WordPart, places: Sequence[int]) -> Numbers32:
    """Positions of a part's documents that have every one of some terms."""
    starts = part.table.starts
    rarest, *others = sorted(places, key=lambda place: int(starts[place + 1] - starts[place]))
    positions, _ = part.table.postings(rarest)
    for place in others:
        if not len(positions):
            break
        more, _ = part.table.postings(place)
        at = np.minimum(np.searchsorted(more, positions), len(more) - 1)
        positions = positions[more[at] == positions]
    return positions if part.allowed is None else positions[part.allowed[positions]]
