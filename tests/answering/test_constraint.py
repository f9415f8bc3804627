"""Numbers in brackets, decoded under a constraint: what may be written is what spells documents, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_plugin.answering.generative.constraint import IdList, IdVocabulary
from msa_plugin.errors import ConfigError
from reference_checkpoint import marker_tokenizer
from tiny import tiny_backbone, tiny_model

PIECES = ("[", "]", *"0123456789", "][", "[1", "12", "]]", "[[", "0]", "1][2", "007", "[10]")
VOCABULARY = IdVocabulary(dict(enumerate(PIECES)))


def _fits(text, numbers, limit):
    """By brute force: whether some way to go on ends in a well-formed list of distinct numbers."""
    *whole, rest = text.split("]")
    if any(not part.startswith("[") for part in whole) or len(whole) > limit:
        return False
    named = [part[1:] for part in whole]
    if len(set(named)) != len(named) or any(name not in {str(n) for n in numbers} for name in named):
        return False
    if not rest:
        return True
    open_ones = {str(n) for n in numbers} - set(named)
    return rest[0] == "[" and len(whole) < limit and any(name.startswith(rest[1:]) for name in open_ones)


@given(
    numbers=st.sets(st.integers(0, 1300), max_size=12),
    limit=st.integers(1, 4),
    choices=st.lists(st.integers(0, 10**6), max_size=14),
)
def test_what_is_allowed_is_what_can_be_finished(numbers, limit, choices):
    written = IdList(VOCABULARY, np.array(sorted(numbers), dtype=np.int64), limit)
    text = ""
    for choice in choices:
        allowed = {PIECES[t] for t in written.allowed()}
        assert allowed == {p for p in PIECES if _fits(text + p, numbers, limit)}
        assert written.between == (not text or text.endswith("]"))
        if not allowed:
            break
        piece = sorted(allowed)[choice % len(allowed)]
        written.take(PIECES.index(piece))
        text += piece
    assert written.chosen == [int(part.strip("[")) for part in text.split("]")[:-1]]


def test_nothing_to_name():
    assert IdList(VOCABULARY, np.array([], dtype=np.int64), 5).allowed() == []


def test_a_million_documents_cost_no_more_than_ten():
    written = IdList(VOCABULARY, np.arange(0, 3_000_000, 3, dtype=np.int64), 5)
    for piece in ("[", "2", "9", "9", "9", "9", "9", "7"):
        assert PIECES.index(piece) in written.allowed()
        written.take(PIECES.index(piece))
    assert {PIECES[t] for t in written.allowed()} == {"]", "]["}


def test_the_vocabulary_of_a_tokenizer():
    backbone = tiny_backbone("qwen3")
    assert sorted(IdVocabulary.of(backbone).tokens.values()) == sorted("[]0123456789")
    tokenizer = marker_tokenizer()
    tokenizer.get_vocab = lambda: {"[": 1, "]": 2}
    backbone = type(backbone)(tiny_model("qwen3"), tokenizer)
    with pytest.raises(ConfigError, match="no tokens for 0 1"):
        IdVocabulary.of(backbone)
