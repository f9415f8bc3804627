"""The search by kernel against the tiled one: the same documents and scores over several blocks, for any adapter."""

import pytest
import torch

from msa_kernels import BackendUnavailableError
from msa_plugin.bank.quantize import quantized
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import InvalidQueryError
from msa_plugin.retrieval.fused import without_kernel
from msa_plugin.retrieval.scorer import route
from msa_plugin.types import KeyBlock

# Chunks of each document, block by block: empty documents, documents of one chunk, and more than a tile of 64.
BLOCKS = ((0, 1, 3), (64, 0, 2, 5), (1,), (0, 0))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="compares on the CPU, in Triton's interpreter"),
    # Keys that are not numbers are part of the tests, and numpy, which interprets them, warns.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def interpreter():
    pytest.importorskip("triton", minversion="3.7", reason="Triton is not installed: pip install 'msa-plugin[triton]'")


def _config(**changes):
    plain = {"layers": (0,), "heads": 4, "kv_heads": 2, "head_dim": 8, "pooling": 8}
    return RoutingConfig(**{**plain, **changes})


def _asked(config, rows=2, tokens=5):
    generator = torch.Generator().manual_seed(rows)
    groups = 1 if config.selection == "per_layer" or config.joint else len(config.layers)
    queries = torch.randn(rows, config.heads * groups, tokens, config.head_dim, generator=generator)
    mask = torch.rand(rows, tokens, generator=generator) < 0.6
    mask[:, 1] = True
    return queries, mask


def _blocks(config, dtype=torch.float16, masks=None):
    generator = torch.Generator().manual_seed(5)
    width, first, found = next(iter(config.key_groups.values())), 3, []
    for number, counts in enumerate(BLOCKS):
        offsets = torch.tensor([0, *counts]).cumsum(0)
        keys = torch.nn.functional.normalize(torch.randn(int(offsets[-1]), width, generator=generator), dim=1)
        scales = None
        if dtype == torch.int8:
            keys, scales = quantized(keys)
            scales = scales[:, 0]
        ordinals = torch.arange(first, first + len(counts))
        first += len(counts)
        found.append(KeyBlock(keys.to(dtype), offsets, ordinals, None if masks is None else masks[number], scales))
    return found


def _same(config, blocks, k=4, question=None, **asked):
    question = question or _asked(config, **asked)
    found, tiled = (route(*question, blocks, k, config, kernels=how) for how in ("triton", "torch"))
    assert found.ordinals.tolist() == tiled.ordinals.tolist()
    torch.testing.assert_close(found.scores, tiled.scores, atol=1e-5, rtol=1e-5)
    return found


@pytest.mark.parametrize(("dtype", "heads"), [(torch.float32, 2), (torch.float16, 6), (torch.int8, 4)])
def test_the_same_documents(dtype, heads):
    config = _config(heads=heads)
    _same(config, _blocks(config, dtype))


@pytest.mark.parametrize(
    "changes",
    [
        {"head_reduce": "max"},
        {"query_reduce": "last"},
        {"query_reduce": "mean"},
        {"query_reduce": "pooled"},
        {"selection": "shared", "layers": (0, 2), "query_reduce": "pooled"},
        {"selection": "shared", "layers": (0, 2), "heads": 1, "kv_heads": 1, "joint": True},
    ],
)
def test_adapters_of_every_kind(changes):
    config = _config(**changes)
    _same(config, _blocks(config), rows=3)


def test_ties_across_blocks_in_any_order_go_to_the_lower_ordinal():
    config = _config()
    blocks = _blocks(config)
    for block in blocks:
        block.keys[:] = 0.5
    queries, mask = _asked(config)
    question = queries.round(), mask  # sums that are exact in any order: the interpreter's products add up in several
    full = [3 + n for n, count in enumerate(count for counts in BLOCKS for count in counts) if count]
    for order in (blocks, blocks[::-1]):
        assert _same(config, order, k=3, question=question).ordinals[0].tolist() == full[:3]


@pytest.mark.parametrize("changes", [{"chunk_reduce": "mean"}, {"query_reduce": "mean", "head_reduce": "max"}])
def test_where_there_is_no_kernel(changes):
    config = _config(**changes)
    assert without_kernel(config)
    queries, mask = _asked(config)
    with pytest.raises(BackendUnavailableError, match="mean"):
        route(queries, mask, _blocks(config), 3, config, kernels="triton")
    route(queries, mask, _blocks(config), 3, config)


def test_bad_questions_and_blocks_are_refused_as_they_are_elsewhere():
    config = _config()
    queries, mask = _asked(config)
    with pytest.raises(InvalidQueryError):
        route(queries * torch.nan, mask, [], 3, config, kernels="triton")
    with pytest.raises(InvalidQueryError):
        route(queries, mask, [_blocks(config)[1]._replace(keys=torch.randn(71, 3))], 3, config, kernels="triton")
