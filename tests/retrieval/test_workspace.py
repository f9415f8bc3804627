"""The search's extra memory depends on tiles, batch and k, not on the number of chunks or question tokens."""

import pytest
import torch
from test_scorer import REDUCTIONS

from msa_plugin.config import RoutingConfig
from msa_plugin.measuring.peak import tensor_bytes
from msa_plugin.retrieval.scorer import route
from msa_plugin.types import KeyBlock

TILE = 256


def extra(chunks, tokens, head, query, chunk, dtype=torch.float16, rows=1):
    reductions = {"head_reduce": head, "query_reduce": query, "chunk_reduce": chunk}
    config = RoutingConfig(layers=(0,), heads=6, kv_heads=2, head_dim=16, pooling=8, **reductions)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(chunks, 32, generator=generator).to(dtype)
    # Falling scores: after the first tile no document displaces another, so every size does the same merges.
    keys *= torch.linspace(1.0, 0.01, chunks)[:, None].to(dtype)
    block = KeyBlock(keys, torch.arange(0, chunks + 1, 4), torch.arange(chunks // 4), None)
    queries = torch.randn(rows, 6, tokens, 16, generator=generator)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[:, 1:3] = False
    return tensor_bytes(lambda: route(queries, mask, [block], 4, config, tile_chunks=TILE, tile_tokens=32))


@pytest.mark.slow
@pytest.mark.parametrize(("head", "query", "chunk"), REDUCTIONS)
def test_eight_times_the_chunks_in_the_same_workspace(head, query, chunk):
    small = extra(16 * TILE, 40, head, query, chunk)
    assert small > 0
    assert extra(128 * TILE, 40, head, query, chunk) == small


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mean", "max"])
@pytest.mark.parametrize("query", ["max", "mean", "last", "pooled"])
def test_eight_times_the_tokens_in_the_same_workspace(head, query):
    small = extra(16 * TILE, 64, head, query, "max")
    # One byte per token: whether it votes, which the question brings along.
    assert extra(16 * TILE, 512, head, query, "max") <= small + 2 * 512


def test_a_large_document_needs_no_more():
    config = RoutingConfig(layers=(0,), heads=2, kv_heads=2, head_dim=16, pooling=8)
    sizes = []
    for chunks in (4 * TILE, 32 * TILE):
        block = KeyBlock(torch.randn(chunks, 32).half(), torch.tensor([0, chunks]), torch.tensor([0]), None)
        question = torch.randn(1, 2, 3, 16), torch.ones(1, 3).bool()
        sizes.append(tensor_bytes(lambda b=block, q=question: route(*q, [b], 4, config, tile_chunks=TILE)))
    assert sizes[0] == sizes[1]
