"""The tiled search against the definition: reductions, sizes, tiles, ties, filters, masks, errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from all_scores import all_scores
from msa_kernels import collapse_heads, plain_scores
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import InvalidQueryError
from msa_plugin.retrieval.scorer import route
from msa_plugin.types import KeyBlock

D = 8
REDUCTIONS = list(itertools.product(["mean", "max"], ["max", "mean", "last", "pooled"], ["max", "mean"]))


def settings_for(heads=4, kv=2, **more):
    return RoutingConfig(layers=(0,), heads=heads, kv_heads=kv, head_dim=D, pooling=4, **more)


def documents(counts, config, seed=0, dtype=torch.float32, first=0, allowed=None):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(sum(counts), config.key_width, generator=generator).to(dtype)
    offsets = torch.tensor([0, *itertools.accumulate(counts)])
    return KeyBlock(keys, offsets, torch.arange(first, first + len(counts)), allowed)


def question(config, rows=1, tokens=5, seed=1, votes=None):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(rows, config.heads, tokens, D, generator=generator)
    mask = torch.rand(rows, tokens, generator=generator) < 0.6 if votes is None else votes
    mask[:, tokens // 2] = True
    return queries, mask


def expected_scores(queries, mask, blocks, config):
    names = ("kv_heads", "head_reduce", "query_reduce", "chunk_reduce", "normalize", "scale")
    settings = {name: getattr(config, name) for name in names}
    return torch.cat([plain_scores(queries, mask, b.keys, b.offsets, **settings) for b in blocks], 1)


def ranked(scores, ordinals, k):
    """Descending scores, ties by lower ordinal, by Python's own sort."""
    rows = [
        sorted(zip(ordinals.tolist(), row.tolist(), strict=True), key=lambda p: (-p[1], p[0]))[:k] for row in scores
    ]
    return [[o for o, _ in row] for row in rows]


def counts_for(chunks):
    """Documents of 1, 2, 3, ... chunks that add up to `chunks`."""
    counts, size = [], 1
    while sum(counts) < chunks:
        counts.append(min(size, chunks - sum(counts)))
        size = size % 5 + 1
    return counts


@pytest.mark.parametrize(("head", "query", "chunk"), REDUCTIONS)
@pytest.mark.parametrize("tiles", [(1, 1), (3, 2), (64, 3), (16384, 256)])
def test_every_reduction_equals_the_definition(head, query, chunk, tiles):
    config = settings_for(head_reduce=head, query_reduce=query, chunk_reduce=chunk, scale=0.5)
    queries, mask = question(config, rows=2)
    blocks = [documents([1, 3, 2, 7, 1, 1], config), documents([4, 1], config, seed=2, first=6)]
    wanted = expected_scores(queries, mask, blocks, config)
    scores = all_scores(queries, mask, blocks, config, tile_chunks=tiles[0], tile_tokens=tiles[1])
    torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=1e-5)
    routed = route(queries, mask, blocks, 3, config, tile_chunks=tiles[0], tile_tokens=tiles[1])
    assert routed.ordinals.tolist() == ranked(wanted, torch.arange(8), 3)
    assert routed.ordinals.dtype == torch.int64
    assert routed.scores.dtype == torch.float32
    torch.testing.assert_close(routed.scores, wanted.sort(1, descending=True).values[:, :3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunks", [1, 63, 64, 65, 100])
@pytest.mark.parametrize("tile", [1, 7, 63, 64, 65, 1000])
def test_odd_sizes(chunks, tile):
    config = settings_for()
    queries, mask = question(config)
    block = documents(counts_for(chunks), config)
    wanted = expected_scores(queries, mask, [block], config)
    routed = route(queries, mask, [block], 10, config, tile_chunks=tile)
    assert routed.ordinals.tolist() == ranked(wanted, block.ordinals, 10)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 100, 300])
@pytest.mark.parametrize("head", ["mean", "max"])
def test_odd_numbers_of_tokens(tokens, head):
    config = settings_for(head_reduce=head)
    queries, mask = question(config, rows=3, tokens=tokens)
    block = documents([2, 1, 3], config)
    scores = all_scores(queries, mask, [block], config, tile_tokens=64)
    torch.testing.assert_close(scores, expected_scores(queries, mask, [block], config), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("query", ["max", "mean", "last"])
def test_collapsed_queries_route_the_same(query):
    config = settings_for(query_reduce=query)
    queries, mask = question(config, rows=2)
    block = documents(counts_for(30), config)
    per_head = route(queries, mask, [block], 5, config)
    collapsed = route(collapse_heads(queries, 2), mask, [block], 5, config)
    assert collapsed.ordinals.tolist() == per_head.ordinals.tolist()
    torch.testing.assert_close(collapsed.scores, per_head.scores)


def test_shared_selection_sums_the_layers():
    one = settings_for(query_reduce="last")
    config = RoutingConfig(**(one.model_dump() | {"layers": (1, 4), "selection": "shared"}))
    queries, mask = question(one)
    more, _ = question(one, seed=9)
    # One chunk per document and one token: the maximum of a sum is the sum of the maxima.
    first, second = documents([1] * 9, one), documents([1] * 9, one, seed=7)
    both = first._replace(keys=torch.cat([first.keys, second.keys], 1))
    scores = all_scores(torch.cat([queries, more], 1), mask, [both], config)
    wanted = expected_scores(queries, mask, [first], one) + expected_scores(more, mask, [second], one)
    torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 24])
@pytest.mark.parametrize("width", [1, 48])
@pytest.mark.parametrize("tile", [1, 64, 100, 2000])
def test_equal_keys_tie_and_the_lower_ordinal_wins(tokens, width, tile):
    config = RoutingConfig(layers=(0,), heads=width, kv_heads=width, head_dim=D, pooling=4)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, width * D, generator=generator).half()
    keys = base[torch.randint(2, (700,), generator=generator)]
    blocks = [
        KeyBlock(keys[:401], torch.arange(402), torch.arange(401), None),
        KeyBlock(keys[401:], torch.arange(300), torch.arange(401, 700), None),
    ]
    queries = torch.randn(1, width, tokens, D, generator=generator)
    routed = route(queries, torch.ones(1, tokens).bool(), blocks, 500, config, tile_chunks=tile)
    scores = dict(zip(routed.ordinals[0].tolist(), routed.scores[0].tolist(), strict=True))
    assert len(set(scores.values())) == 2
    assert routed.ordinals[0].tolist() == sorted(scores, key=lambda o: (-scores[o], o))
    best = keys[routed.ordinals[0, 0]]
    assert routed.ordinals[0, :300].tolist() == (keys == best).all(1).nonzero()[:300, 0].tolist()


def test_ties_across_blocks_in_any_order():
    config = settings_for()
    queries, mask = question(config)
    block = documents([1] * 6, config)
    keys = block.keys[:1].expand(6, -1)
    later = KeyBlock(keys, block.offsets, torch.arange(10, 16), None)
    early = KeyBlock(keys, block.offsets, torch.arange(6), None)
    for order in ([early, later], [later, early]):
        assert route(queries, mask, order, 8, config).ordinals.tolist() == [[0, 1, 2, 3, 4, 5, 10, 11]]


def test_tiles_and_runs_do_not_change_a_bit():
    config = settings_for(9, 3)
    queries, mask = question(config, tokens=24)
    block = documents(counts_for(500), config, dtype=torch.float16)
    first = route(queries, mask, [block], 50, config)
    for tile in (16384, 200, 16384):
        again = route(queries, mask, [block], 50, config, tile_chunks=tile)
        assert again.ordinals.tolist() == first.ordinals.tolist()
        torch.testing.assert_close(again.scores, first.scores, atol=1e-6, rtol=1e-6)
    assert torch.equal(route(queries, mask, [block], 50, config).scores, first.scores)


@pytest.mark.parametrize("chunk", ["max", "mean"])
def test_filters_apply_before_the_selection(chunk):
    config = settings_for(chunk_reduce=chunk)
    queries, mask = question(config, rows=2)
    allowed = torch.arange(40) % 7 == 3
    block = documents(counts_for(100)[:40], config)
    count = block.ordinals.numel()
    block = block._replace(allowed=allowed[:count])
    wanted = expected_scores(queries, mask, [block], config)[:, allowed[:count]]
    for k in (2, 100):
        for tile in (2, 10, 16384):
            routed = route(queries, mask, [block], k, config, tile_chunks=tile)
            assert routed.ordinals.tolist() == ranked(wanted, block.ordinals[allowed[:count]], k)
    torch.testing.assert_close(all_scores(queries, mask, [block], config), wanted, atol=1e-5, rtol=1e-5)


def test_a_document_larger_than_a_tile_can_be_filtered_too():
    config = settings_for()
    queries, mask = question(config)
    block = documents([30, 1, 30], config, allowed=torch.tensor([False, True, True]))
    assert sorted(route(queries, mask, [block], 3, config, tile_chunks=8).ordinals[0].tolist()) == [1, 2]


def test_fewer_documents_than_k():
    config = settings_for()
    queries, mask = question(config, rows=2)
    block = documents([1, 2, 3], config)
    assert route(queries, mask, [block], 10**6, config).scores.shape == (2, 3)
    nothing = block._replace(allowed=torch.zeros(3, dtype=torch.bool))
    empty = documents([], config)
    for blocks in ([], [empty], [nothing], [empty, nothing]):
        assert route(queries, mask, blocks, 4, config).ordinals.shape == (2, 0)
        assert route(queries, mask, iter(blocks), 4, config).scores.shape == (2, 0)
        assert all_scores(queries, mask, blocks, config).shape == (2, 0)


def test_a_key_that_is_not_a_number_never_wins():
    config = settings_for()
    queries, mask = question(config)
    block = documents([1] * 40, config)
    block.keys[[0, 7, 30]] = float("nan")
    for tile in (4, 16384):
        routed = route(queries, mask, [block], 37, config, tile_chunks=tile)
        assert not {0, 7, 30} & set(routed.ordinals[0].tolist())
        assert bool(routed.scores.isfinite().all())


def test_leftovers_in_the_workspace_never_show(monkeypatch):
    real = torch.empty
    real_new = torch.Tensor.new_empty

    def poison(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(real(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(real_new(*a, **k)))
    for head, query, chunk in REDUCTIONS:
        config = settings_for(head_reduce=head, query_reduce=query, chunk_reduce=chunk)
        queries, mask = question(config, rows=3)
        block = documents(counts_for(50), config, dtype=torch.float16)
        wanted = expected_scores(queries, mask, [block], config)
        scores = all_scores(queries, mask, [block], config, tile_chunks=20, tile_tokens=4)
        torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"k": 0},
        {"k": -1},
        {"tile_chunks": 0},
        {"tile_tokens": 0},
        {"mask": torch.tensor([[True] * 5, [False] * 5])},
        {"mask": torch.ones(2, 4).bool()},
        {"queries": torch.full((2, 4, 5, D), float("nan"))},
        {"queries": torch.full((2, 4, 5, D), float("inf"))},
        {"queries": torch.zeros(2, 4, 5, D + 1)},
        {"queries": torch.zeros(2, 3, 5, D)},
        {"queries": torch.zeros(2, 5, 3 * D)},
        {"queries": torch.zeros(4, D)},
        {"queries": torch.zeros(2, 4, 5, D, dtype=torch.int64)},
        {"queries": torch.zeros(0, 4, 5, D), "mask": torch.zeros(0, 5).bool()},
        {"queries": torch.zeros(2, 4, 0, D), "mask": torch.zeros(2, 0).bool()},
    ],
)
def test_what_cannot_be_answered(change):
    config = settings_for()
    queries, mask = question(config, rows=2)
    call = {"queries": queries, "mask": mask, "k": 2, "blocks": [documents([1, 2], config)], "config": config}
    with pytest.raises(InvalidQueryError):
        route(**(call | change))


def test_one_nan_is_enough():
    config = settings_for()
    queries, mask = question(config)
    queries[0, 2, 3, 1] = float("nan")
    with pytest.raises(InvalidQueryError, match="NaN"):
        route(queries, mask, [], 2, config)


@pytest.mark.parametrize("more", [{"head_reduce": "max"}, {"query_reduce": "pooled"}])
def test_collapsed_queries_need_a_reduction_that_does_not_see_heads(more):
    with pytest.raises(InvalidQueryError, match="heads"):
        route(torch.ones(1, 2, 2 * D), torch.ones(1, 2).bool(), [], 2, settings_for(**more))


def test_blocks_that_do_not_fit():
    config = settings_for()
    queries, mask = question(config)
    block = documents([1, 2], config)
    wrong = [
        block._replace(keys=block.keys[:, 1:]),
        block._replace(offsets=block.offsets[1:]),
        block._replace(allowed=torch.ones(3, dtype=torch.bool)),
    ]
    for bad in wrong:
        with pytest.raises(InvalidQueryError):
            route(queries, mask, [bad], 2, config)


@given(
    counts=st.lists(st.integers(1, 9), max_size=25),
    split=st.integers(0, 25),
    tiles=st.tuples(st.integers(1, 40), st.integers(1, 12)),
    k=st.integers(1, 30),
    rows=st.integers(1, 3),
    tokens=st.integers(1, 7),
    reductions=st.sampled_from(REDUCTIONS),
    shape=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3), (9, 3), (8, 1)]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    blocked=st.integers(0, 2**25 - 1),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=150)
def test_any_memory_and_question(counts, split, tiles, k, rows, tokens, reductions, shape, dtype, blocked, seed):
    head, query, chunk = reductions
    config = settings_for(*shape, head_reduce=head, query_reduce=query, chunk_reduce=chunk)
    queries, mask = question(config, rows, tokens, seed)
    parts = [counts[:split], counts[split:]]
    allowed = torch.tensor([not blocked >> i & 1 for i in range(len(counts))], dtype=torch.bool)
    blocks = [
        documents(part, config, seed + i, dtype, first=i * len(parts[0]), allowed=a)
        for i, (part, a) in enumerate(zip(parts, (allowed[:split], allowed[split:]), strict=True))
    ]
    routed = route(queries, mask, blocks, k, config, tile_chunks=tiles[0], tile_tokens=tiles[1])
    wanted = expected_scores(queries, mask, blocks, config)[:, allowed]
    names = torch.arange(len(counts))[allowed]
    assert routed.ordinals.shape == (rows, min(k, names.numel()))
    best = wanted.sort(1, descending=True).values[:, : routed.scores.shape[1]]
    torch.testing.assert_close(routed.scores, best, atol=1e-5, rtol=1e-5)
    for row, picked in enumerate(routed.ordinals.tolist()):
        assert len(set(picked)) == len(picked)
        positions = [names.tolist().index(o) for o in picked]
        torch.testing.assert_close(wanted[row, positions], routed.scores[row], atol=1e-5, rtol=1e-5)
