"""From chosen documents to a prefill: budgets, excerpts, and where stored K, V are laid out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facade import opened
from msa_plugin.answering.reading import Excerpt, allowances, around


@given(st.lists(st.integers(0, 500), max_size=8), st.integers(0, 900))
def test_allowances_use_the_budget_and_never_exceed_it(lengths, budget):
    granted = allowances(lengths, budget)
    assert all(0 <= g <= n for g, n in zip(granted, lengths, strict=True))
    assert sum(granted) <= budget
    if sum(lengths) <= budget:
        assert granted == lengths
    elif lengths:
        # What is left over is less than one token for each document that was cut.
        assert budget - sum(granted) < len(lengths)


@given(st.integers(0, 999), st.integers(1, 1000), st.integers(1, 1000))
def test_an_excerpt_holds_its_position(position, size, total):
    position, size = position % total, min(size, total)
    start, stop = around(position, size, total)
    assert 0 <= start <= position < stop <= total
    assert stop - start == size


@pytest.fixture
def reader(tmp_path, backbone):
    with opened(tmp_path, backbone, reading="kv", window=32) as memory:
        yield memory.engine.reader


def _positions(reader, spans, pooling):
    """Where each span's chunks end up: their position in their window, moved by the span's shift."""
    size = reader.layout.chunks_per_window(pooling)
    return [chunk % size * pooling + span.shift for span in spans for chunk in range(span.start, span.stop)]


@pytest.mark.parametrize("pooling", [1, 4])
def test_documents_are_laid_out_one_after_another_behind_the_head(reader, pooling):
    # Windows hold 31 tokens of text behind one of ours: this excerpt touches three of them.
    chosen = [Excerpt(0, "", 20, 75), Excerpt(1, "", 0, 9)]
    spans, start = reader._placed(chosen, pooling)
    positions = _positions(reader, spans, pooling)
    assert positions == list(range(reader.head.length, start, pooling))
    assert {span.ordinal for span in spans} == {0, 1}
    assert sum(s.ordinal == 0 for s in spans) == 3


def test_a_question_without_documents_follows_the_head(reader):
    assert reader._placed([], 1) == ([], reader.head.length)


def test_latents_stay_where_they_were_encoded(tmp_path, backbone):
    with opened(tmp_path, backbone, reading="latent") as memory:
        reader = memory.engine.reader
        spans, start = reader._placed([Excerpt(0, "", 0, 40), Excerpt(1, "", 0, 9)], 8)
        assert all(span.shift == 0 for span in spans)
        assert start == reader.head.length + memory.engine.top_k
