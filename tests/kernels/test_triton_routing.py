"""The routing kernel against its twin, and the twin against the definition of the score."""

import pytest
import torch

from msa_kernels import chunk_owners, collapse_heads, heads_apart, plain_scores, reference_routing, route_topk

# Keys that are not numbers are part of the tests, and numpy, which interprets them, warns.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# Odd documents: empty ones at both ends and inside, one chunk, and around a tile of 64, 128 and 256 chunks.
CHUNKS = (0, 1, 63, 64, 0, 65, 100, 2, 1, 260, 0)


def _question(rows, heads, tokens, dim, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(rows, heads, tokens, dim, generator=generator)
    votes = torch.rand(rows, tokens, generator=generator) < 0.7
    votes[:, tokens // 2] = True
    return queries.to(device), votes.to(device)


def _keys(width, dtype, device, counts=CHUNKS, seed=1):
    offsets = torch.tensor([0, *counts]).cumsum(0)
    keys = torch.randn(int(offsets[-1]), width, generator=torch.Generator().manual_seed(seed))
    keys = keys / keys.norm(dim=1, keepdim=True).clamp(min=1e-9)
    if dtype != torch.int8:
        return keys.to(dtype).to(device), None, offsets.to(device)
    scales = keys.abs().amax(1) / 127
    return (keys / scales[:, None]).round().to(torch.int8).to(device), scales.to(device), offsets.to(device)


def _same(question, keys, scales, offsets, k, **options):
    """Equal scores, and equal documents up to what rounding may swap."""
    found = route_topk(*question, keys, offsets, k, scales=scales, backend="triton", **options)
    twin = route_topk(*question, keys, offsets, k, scales=scales, backend="torch", **options)
    torch.testing.assert_close(found.scores, twin.scores, atol=1e-5, rtol=1e-5)
    every = route_topk(*question, keys, offsets, offsets.shape[0] - 1, scales=scales, backend="torch", **options)
    table = torch.full_like(every.scores, -torch.inf).scatter(1, every.documents.clamp(min=0), every.scores)
    chosen = table.gather(1, found.documents.clamp(min=0))
    torch.testing.assert_close(chosen, twin.scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.documents < 0, twin.documents < 0)
    assert all(len(set(row)) == len(row) for row in found.documents[:, : (twin.documents >= 0).sum(1).min()].tolist())
    return found


@pytest.mark.parametrize(
    ("rows", "heads", "kv", "tokens", "dim", "k"),
    [(1, 4, 4, 1, 16, 3), (3, 9, 3, 17, 24, 11), (2, 8, 1, 65, 64, 2), (5, 2, 2, 3, 8, 40)],
)
def test_equals_the_twin(device, dtype, poisoned, rows, heads, kv, tokens, dim, k):
    queries, votes = _question(rows, heads, tokens, dim, device)
    keys, scales, offsets = _keys(kv * dim, dtype, device)
    question = collapse_heads(queries, kv)[:, None], votes
    assert _same(question, keys, scales, offsets, k).documents.shape == (rows, min(k, len(CHUNKS)))


@pytest.mark.parametrize("tokens", [63, 64, 100])
def test_odd_lengths_of_the_question(device, poisoned, tokens):
    queries, votes = _question(2, 6, tokens, 16, device)
    keys, scales, offsets = _keys(3 * 16, torch.float32, device)
    _same((collapse_heads(queries, 3)[:, None], votes), keys, scales, offsets, 5)


@pytest.mark.parametrize("documents", [1, 63, 64, 65, 100])
def test_documents_of_one_chunk(device, poisoned, documents):
    queries, votes = _question(2, 4, 3, 16, device)
    keys, scales, offsets = _keys(2 * 16, torch.float16, device, counts=(1,) * documents)
    _same((collapse_heads(queries, 2)[:, None], votes), keys, scales, offsets, 7)


def test_int8_keys_with_scales(device, poisoned):
    queries, votes = _question(2, 6, 5, 32, device)
    keys, scales, offsets = _keys(64, torch.int8, device)
    scales[3] = 0  # a key of zeros
    _same((collapse_heads(queries, 2)[:, None], votes), keys, scales, offsets, 4)


def test_tensors_that_are_views_of_others(device):
    queries, votes = _question(2, 2, 3, 8, device)
    keys, scales, offsets = _keys(16, torch.int8, device)
    wide = torch.stack([keys, -keys], 1).flatten(1)[:, :16]
    allowed = torch.tensor([[i % 2 > 0, i % 2 == 0] for i in range(len(CHUNKS))], device=device)[:, 0]
    owners = torch.stack([chunk_owners(offsets, keys.shape[0])] * 2, 1)[:, 1]
    question = collapse_heads(queries, 2)[:, None], votes
    _same(question, wide, torch.stack([scales, -scales], 1)[:, 0], offsets, 4, allowed=allowed, owners=owners)


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (9, 3), (8, 1)])
def test_maximum_over_heads(device, dtype, heads, kv):
    queries, votes = _question(2, heads, 5, 16, device)
    keys, _, offsets = _keys(kv * 16, dtype, device)
    found = _same(heads_apart(queries, votes, kv), keys, None, offsets, 5)
    by_definition = plain_scores(queries, votes, keys, offsets, kv_heads=kv, head_reduce="max")
    torch.testing.assert_close(found.scores, by_definition.topk(5).values, atol=1e-5, rtol=1e-5)


def test_more_tokens_than_a_tile(device):
    queries, votes = _question(2, 1, 130, 16, device)
    queries[:, :, -1] *= 10  # the last token decides
    votes[:, -1] = True
    keys, _, offsets = _keys(16, torch.float16, device, (40, 3))
    _same((queries, votes), keys, None, offsets, 2)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_ties_go_to_the_lower_index(device, backend):
    """Small whole numbers are exact everywhere, so that ties are ties."""
    queries = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]], [[[0.0, 0.0, 0.0, 1.0]]]], device=device)
    keys = torch.zeros(1400, 4, dtype=torch.float16, device=device)
    keys[[7, 700, 1399], 0] = 2
    found = route_topk(
        queries, torch.ones(2, 1, dtype=torch.bool, device=device), keys, torch.arange(1401, device=device), 5,
        backend=backend,
    )  # fmt: skip
    assert found.documents.tolist() == [[7, 700, 1399, 0, 1], [0, 1, 2, 3, 4]]
    assert found.scores.tolist() == [[2, 2, 2, 0, 0], [0] * 5]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_both_zeros_are_one_score(device, backend):
    queries = torch.full((1, 1, 1, 1), 2.0**-126, device=device)
    keys = torch.tensor([[-(2.0**-24)], [0.0]], dtype=torch.float16, device=device)  # the product underflows to -0
    votes, offsets = torch.ones(1, 1, dtype=torch.bool, device=device), torch.arange(3, device=device)
    assert route_topk(queries, votes, keys, offsets, 2, backend=backend).documents.tolist() == [[0, 1]]


def test_more_than_is_picked_in_a_tile(device):
    from msa_kernels.triton_routing import MOST_PICKED

    queries, votes = _question(1, 2, 3, 8, device)
    keys, _, offsets = _keys(16, torch.float32, device, [1] * 1100)
    _same((collapse_heads(queries, 2)[:, None], votes), keys, None, offsets, MOST_PICKED + 60)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_documents_that_are_not_allowed_are_never_returned(device, backend):
    queries, votes = _question(2, 2, 3, 8, device)
    keys, _, offsets = _keys(16, torch.float32, device)
    allowed = torch.tensor([i % 3 != 0 for i in range(len(CHUNKS))], device=device)
    question = collapse_heads(queries, 2)[:, None], votes
    clean = route_topk(*question, keys, offsets, 20, allowed=allowed, backend=backend)
    keys[~allowed[chunk_owners(offsets, keys.shape[0]).long()]] = torch.inf
    found = route_topk(*question, keys, offsets, 20, allowed=allowed, backend=backend)
    assert torch.equal(found.documents, clean.documents) and torch.equal(found.scores, clean.scores)
    names = [sorted(i for i in row if i >= 0) for row in found.documents.tolist()]
    assert names == [allowed.nonzero()[:, 0].tolist()] * 2
    assert (found.documents[:, -(~allowed).sum() :] == -1).all()


def test_keys_that_are_not_allowed_are_not_loaded(device, monkeypatch):
    """A key that is loaded raises its document's maximum, which nobody returns: looked at before the choice."""
    from msa_kernels import triton_routing

    seen = []
    pick = triton_routing._pick
    monkeypatch.setattr(triton_routing, "_pick", lambda best, *rest: pick(seen.append(best) or best, *rest))
    queries, votes = _question(1, 1, 2, 8, device)
    keys, _, offsets = _keys(8, torch.float32, device)
    allowed = torch.tensor([i % 3 != 0 for i in range(len(CHUNKS))], device=device)
    route_topk(queries, votes, keys, offsets, 3, allowed=allowed, backend="triton")
    raised = seen[0][0] > triton_routing.LOWEST
    assert torch.equal(raised, allowed & (offsets.diff() > 0))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_keys_that_are_not_finite_and_empty_documents_come_last(device, backend):
    queries, votes = _question(1, 1, 2, 8, device)
    keys, _, offsets = _keys(8, torch.float32, device, (1, 0, 2, 1, 3))
    keys[0], keys[1, 4], keys[3, 2] = torch.nan, torch.nan, torch.inf
    found = route_topk(queries.abs(), votes, keys, offsets, 5, backend=backend)
    assert sorted(found.documents[0, :2].tolist()) == [2, 4]
    assert found.documents[0, 2:].tolist() == [0, 1, 3]
    assert found.scores.isfinite().tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_in_slabs_as_at_once(device, backend):
    from msa_kernels import triton_routing

    queries, votes = _question(2, 2, 3, 8, device)
    keys, _, offsets = _keys(16, torch.float32, device)
    search = (triton_routing if backend == "triton" else reference_routing).top_documents
    whole, parts = (
        search(collapse_heads(queries, 2)[:, None], votes, keys, offsets, 6, slab_numbers=n) for n in (1 << 20, 6)
    )
    assert torch.equal(whole.documents, parts.documents)
    # Some CPUs' matrix products round by the size of the matrix.
    torch.testing.assert_close(whole.scores, parts.scores, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("counts", [(), (0, 0, 0)])
def test_nothing_to_find(device, backend, counts):
    queries, votes = _question(2, 1, 2, 8, device)
    keys, _, offsets = _keys(8, torch.float32, device, counts)
    found = route_topk(queries, votes, keys, offsets, 2, backend=backend)
    assert found.documents.tolist() == [list(range(min(2, len(counts))))] * 2
    assert found.scores.isinf().all()


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (9, 3), (8, 1)])
def test_twin_equals_the_definition(heads, kv):
    queries, votes = _question(3, heads, 7, 8, "cpu")
    keys, _, offsets = _keys(kv * 8, torch.float32, "cpu")
    expected = plain_scores(queries, votes, keys, offsets, kv_heads=kv)
    found = route_topk(collapse_heads(queries, kv)[:, None], votes, keys, offsets, 4, backend="torch")
    order = expected.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.documents, order.indices[:, :4])
    torch.testing.assert_close(found.scores, order.values[:, :4])


def test_refuses_what_does_not_fit():
    queries, votes = _question(1, 1, 2, 8, "cpu")
    keys, _, offsets = _keys(8, torch.float32, "cpu", (1, 2))
    for k, given in (
        (0, {}),
        (1, {"scales": torch.ones(3)}),
        (1, {"allowed": torch.ones(3, dtype=torch.bool)}),
        (1, {"allowed": torch.ones(2)}),
    ):
        with pytest.raises(ValueError):
            route_topk(queries, votes, keys, offsets, k, **given)
    for wrong in (keys[:, :7], keys.double(), keys.to(torch.int8)):
        with pytest.raises(ValueError):
            route_topk(queries, votes, wrong, offsets, 1)
