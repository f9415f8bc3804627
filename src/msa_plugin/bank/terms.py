"""What a title calls its document, words and names as hashes, and which tokeniser this is.

`tokenizer()` changes with whatever changes the words (`msa_plugin.stems`) or names; words of two tokenisers are never
mixed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from msa_plugin.stems import stems

Hashes = NDArray[np.int64]

LONGEST = 10  # words; longer titles are no names
_WORD = re.compile(r"\w+")
_ASIDE = re.compile(r"\s*\([^()]*\)")  # "Port Blair (city)" is called Port Blair
_PROBE = """Generously communal skies tying news' inner-city SKIS; succeeded, proceeding exceeds. Hopping hoped hoping
hopefully relational conditional rationalization valency hesitancy digitizer conformably radically differently vileness
analogously vietnamization predication operator feudalism decisiveness formality sensitivity sensibility triplicate
formative formalize electricity electrical goodness revival allowance inference airliner gyroscopic adjustable
defensible irritant replacement adoption homologous effective bowdlerize probate rate cease controlling rolled queue
dying lying idly gently ugly early only singly atlas cosmos bias andes inning outing canning herring earring don't it's
naïve café Straße ΟΔΟΣ İstanbul snake_case x1 42 3.14 e-mail U.S.A. 中文 a I we the not nor because against"""
_PROBED_TITLES = ("Port Blair (city)", "(1984)", "It's  a Kestrel-Mill_2", "Straße ΟΔΟΣ", " ".join("abcdefghijk"))


@lru_cache(maxsize=1)
def tokenizer() -> str:
    """Which tokeniser this is, by what it makes of a text that every rule has something to do in."""
    seen = (LONGEST, stems()([_PROBE])[0], [name_of(title) for title in _PROBED_TITLES])
    return f"en-{hashlib.sha256(repr(seen).encode()).hexdigest()[:16]}"


def words_of(text: str) -> list[str]:
    """The words that names are made of, as they are spelled."""
    return _WORD.findall(text)


def name_of(title: str) -> str:
    """What a document with this title is called; empty where the title is no name: without a word, or too long."""
    words = words_of(_ASIDE.sub("", title)) or words_of(title)
    return " ".join(words) if len(words) <= LONGEST else ""


def lowered(name: str) -> str:
    """A name without its case."""
    return name.lower()


def hashed(words: Sequence[str]) -> Hashes:
    """64 bits of each word. Two words may share them, so that whoever looks words up compares these as well."""
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def hashed_runs(words: Sequence[str]) -> Hashes:
    """Hashes [LONGEST, n] of the runs of 1 to `LONGEST` of `words` that begin at each; 0 where a run would not fit."""
    of_word = _of_each(words)
    runs = np.zeros((LONGEST, len(words)), dtype=np.int64)
    for size in range(1, min(LONGEST, len(words)) + 1):
        fits = len(words) - size + 1
        before = runs[size - 2, :fits] if size > 1 else 0
        runs[size - 1, :fits] = before * _FACTOR + of_word[size - 1 :]
    return runs


def hashed_names(names: Sequence[str]) -> Hashes:
    """Hashes [n] of names, each as of the run of its words."""
    rows = [name.split(" ") for name in names]
    of_word = _of_each([word for row in rows for word in row])
    found, first = np.zeros(len(rows), dtype=np.int64), 0
    sizes = np.asarray([len(row) for row in rows], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    for place in range(int(sizes.max(initial=first))):
        longer = sizes > place
        found[longer] = found[longer] * _FACTOR + of_word[starts[longer] + place]
    return found


_FACTOR = np.int64(0x2545F4914F6CDD1D)


def _of_each(words: Sequence[str]) -> Hashes:
    distinct = {word: place for place, word in enumerate(dict.fromkeys(words))}
    return hashed(list(distinct))[np.fromiter((distinct[word] for word in words), dtype=np.int64, count=len(words))]
