"""Plain kernels: pooling by ranges, head collapse and the definition of the score."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_kernels import chunk_offsets, collapse_heads, mean_pool, plain_scores


def test_chunk_offsets_cover_documents_without_crossing():
    offsets, chunks = chunk_offsets([8, 19, 1, 5, 0, 16], 8)
    assert chunks.tolist() == [1, 3, 1, 1, 0, 2]
    assert offsets.tolist() == [0, 8, 16, 24, 27, 28, 33, 41, 49]
    assert offsets.dtype == chunks.dtype == torch.int64


def test_chunk_offsets_of_nothing():
    offsets, chunks = chunk_offsets([], 64)
    assert offsets.tolist() == [0]
    assert chunks.tolist() == []


@pytest.mark.parametrize(("lengths", "pooling"), [([3], 0), ([-1], 4), ([[1, 2]], 4)])
def test_chunk_offsets_refuse_nonsense(lengths, pooling):
    with pytest.raises(ValueError):
        chunk_offsets(lengths, pooling)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mean_pool_equals_slices(length, dtype):
    x = torch.randn(length + 7, 2, 5, generator=torch.Generator().manual_seed(length)).to(dtype)
    offsets, _ = chunk_offsets([length, 7], 64)
    expected = torch.stack([x[a:b].float().mean(0) for a, b in pairwise(offsets)]).to(dtype)
    pooled = mean_pool(x, offsets)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, expected)


def test_mean_pool_of_no_chunks():
    assert mean_pool(torch.empty(0, 3, 4), torch.zeros(1, dtype=torch.int64)).shape == (0, 3, 4)


def test_mean_pool_weights():
    x = torch.tensor([[1.0], [3.0], [5.0], [7.0], [2.0]])
    weights = torch.tensor([1.0, 3.0, 0.0, 0.0, 4.0])
    pooled = mean_pool(x, torch.tensor([0, 2, 4, 5]), weights)
    torch.testing.assert_close(pooled, torch.tensor([[2.5], [6.0], [2.0]]))  # the middle one: all weights are zero


def test_mean_pool_far_from_the_start_keeps_its_precision():
    x = torch.full((200_000, 1), 100.0)
    x[-1] = 100.25
    offsets, _ = chunk_offsets([199_999, 1], 64)
    assert mean_pool(x, offsets)[-1].item() == 100.25


def test_mean_pool_gradients():
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, dtype=torch.float64).add(0.1).requires_grad_()
    offsets = torch.tensor([0, 1, 4, 6])
    assert torch.autograd.gradcheck(lambda a, w: mean_pool(a, offsets, w), (x, weights))


def test_mean_pool_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError):
        mean_pool(torch.zeros(4, 2), torch.tensor([0, 4]), torch.ones(3))


@pytest.mark.parametrize(("heads", "kv"), [(1, 1), (4, 4), (6, 2), (9, 3), (8, 1)])
def test_collapsed_product_is_the_mean_over_heads(heads, kv):
    generator = torch.Generator().manual_seed(heads)
    queries = torch.randn(2, heads, 5, 8, generator=generator)
    keys = torch.randn(7, kv * 8, generator=generator)
    collapsed = collapse_heads(queries, kv)
    assert collapsed.shape == (2, 5, kv * 8)
    expected = torch.stack([queries[:, h] @ keys.view(7, kv, 8)[:, h // (heads // kv)].T for h in range(heads)]).mean(0)
    torch.testing.assert_close(collapsed @ keys.T, expected, atol=1e-5, rtol=1e-5)


def test_collapse_refuses_uneven_groups():
    with pytest.raises(ValueError):
        collapse_heads(torch.zeros(5, 2, 4), 2)


def _by_loops(queries, mask, keys, offsets, kv, head, query, chunk):
    rows, heads = queries.shape[:2]
    scores = torch.empty(rows, len(offsets) - 1)
    for b in range(rows):
        tokens = [t for t in range(mask.shape[1]) if mask[b, t]]
        for d in range(len(offsets) - 1):
            per_chunk = []
            for c in range(int(offsets[d]), int(offsets[d + 1])):
                k = keys[c].view(kv, -1)
                per_token = [
                    torch.stack([queries[b, h, t] @ k[h // (heads // kv)] for h in range(heads)]) for t in tokens
                ]
                reduced = torch.stack([p.mean() if head == "mean" else p.max() for p in per_token])
                per_chunk.append({"max": reduced.max(), "mean": reduced.mean(), "last": reduced[-1]}[query])
            stacked = torch.stack(per_chunk)
            scores[b, d] = stacked.max() if chunk == "max" else stacked.mean()
    return scores


@pytest.mark.parametrize("head", ["mean", "max"])
@pytest.mark.parametrize("query", ["max", "mean", "last"])
@pytest.mark.parametrize("chunk", ["max", "mean"])
def test_plain_scores_follow_the_definition(head, query, chunk):
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(2, 4, 5, 3, generator=generator) - 2  # mostly negative products: a masked zero would win
    keys = torch.rand(6, 2 * 3, generator=generator)
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 1, 0]]).bool()
    offsets = torch.tensor([0, 1, 4, 6])
    scores = plain_scores(
        queries, mask, keys, offsets, kv_heads=2, head_reduce=head, query_reduce=query, chunk_reduce=chunk
    )
    torch.testing.assert_close(scores, _by_loops(queries, mask, keys, offsets, 2, head, query, chunk))


@given(scale=st.sampled_from([1.0, 0.25]), normalize=st.booleans())
@settings(deadline=None, max_examples=8)
def test_pooled_is_the_mean_query_normalised_per_head(scale, normalize):
    generator = torch.Generator().manual_seed(5)
    queries = torch.randn(1, 2, 3, 4, generator=generator)
    keys = torch.randn(3, 4, generator=generator)
    mean = queries[:, :, :2].mean(2)
    unit = torch.nn.functional.normalize(mean, dim=-1) * scale if normalize else mean
    votes, settings = torch.tensor([[True, True, False]]), {"normalize": normalize, "scale": scale}
    scores = plain_scores(queries, votes, keys, torch.arange(4), kv_heads=1, query_reduce="pooled", **settings)
    torch.testing.assert_close(scores[0], keys @ unit[0].mean(0))


def test_rows_without_votes_and_documents_without_chunks_never_win():
    votes = torch.tensor([[True, False], [False, False]])
    scores = plain_scores(torch.ones(2, 1, 2, 2), votes, torch.ones(1, 2), torch.tensor([0, 1, 1]), kv_heads=1)
    assert scores.tolist() == [[2.0, -torch.inf], [-torch.inf, -torch.inf]]


@pytest.mark.parametrize("name", ["head_reduce", "query_reduce", "chunk_reduce"])
def test_plain_scores_refuse_unknown_reductions(name):
    given = torch.ones(1, 1, 1, 2), torch.ones(1, 1).bool(), torch.ones(1, 2), torch.tensor([0, 1])
    with pytest.raises(ValueError):
        plain_scores(*given, kv_heads=1, **{name: "median"})
