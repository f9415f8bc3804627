"""Documents that may not be returned: their keys are not read, and they change no number of the others."""

import itertools

import pytest
import torch
from test_scorer import REDUCTIONS, settings_for

from all_scores import all_scores
from msa_plugin.retrieval.scorer import _ChunkScorer, route
from msa_plugin.types import KeyBlock

TILES = [pytest.param((1, 1), marks=pytest.mark.slow), (5, 2), (64, 3), (16384, 256)]


def mine(config, counts=(3, 1, 40, 2, 2, 7, 1, 90, 4)):
    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(sum(counts), config.key_width, generator=generator).half()
    return [keys.split(counts)[n] for n in range(len(counts))]


def interleaved(documents, others):
    """A block of `documents`, before each of them `others` foreign ones of three chunks that are not allowed."""
    foreign = torch.full((3, documents[0].shape[1]), 60000.0).half()  # would win everything
    rows, allowed = [], []
    for document in documents:
        rows += [foreign] * others + [document]
        allowed += [False] * others + [True]
    offsets = torch.tensor([0, *itertools.accumulate(len(r) for r in rows)])
    mask = torch.tensor(allowed) if others else None
    return KeyBlock(torch.cat(rows), offsets, torch.arange(len(rows)), mask)


def question(config, rows=2):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(rows, config.heads, 5, config.head_dim, generator=generator), torch.ones(rows, 5).bool()


@pytest.mark.parametrize(("head", "query", "chunk"), REDUCTIONS)
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("others", [1, 30])
def test_scores_are_the_same_bits_with_and_without_others(head, query, chunk, tiles, others):
    config = settings_for(head_reduce=head, query_reduce=query, chunk_reduce=chunk)
    sizes = {"tile_chunks": tiles[0], "tile_tokens": tiles[1]}
    alone, among = interleaved(mine(config), 0), interleaved(mine(config), others)
    expected = all_scores(*question(config), [alone], config, **sizes)
    assert torch.equal(all_scores(*question(config), [among], config, **sizes), expected)
    best, best_among = (route(*question(config), [b], 4, config, **sizes) for b in (alone, among))
    assert torch.equal(best_among.scores, best.scores)
    assert torch.equal(best_among.ordinals // (others + 1), best.ordinals)


@pytest.mark.parametrize("others", [0, 1, 1000])
@pytest.mark.parametrize("tiles", TILES[1:])
def test_only_allowed_keys_are_read(monkeypatch, others, tiles):
    config, read = settings_for(), []
    load = _ChunkScorer._load
    monkeypatch.setattr(_ChunkScorer, "_load", lambda self, rows: read.append(rows.clone()) or load(self, rows))
    documents = mine(config)
    route(*question(config, 1), [interleaved(documents, others)], 4, config, tile_chunks=tiles[0])
    assert torch.equal(torch.cat(read), torch.cat(documents))


def test_a_mask_that_allows_nothing_reads_nothing():
    config = settings_for()
    block = interleaved(mine(config), 1)._replace(allowed=torch.zeros(18, dtype=torch.bool))
    assert route(*question(config), [block], 4, config).ordinals.shape == (2, 0)
