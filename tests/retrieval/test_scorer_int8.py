"""int8 keys in the tiled search: the scores are those of the numbers that the integers and scales stand for."""

import pytest
import torch
from test_scorer import REDUCTIONS, counts_for, documents, expected_scores, question, settings_for

from all_scores import all_scores
from msa_kernels import collapse_heads, route_topk
from msa_plugin.bank.quantize import quantized
from msa_plugin.errors import InvalidQueryError
from msa_plugin.retrieval.scorer import route


def small(block):
    """A block in int8, and the same numbers as float32."""
    keys, scales = quantized(block.keys)
    return block._replace(keys=keys, scales=scales[:, 0]), block._replace(keys=keys * scales)


@pytest.mark.parametrize("tiles", [(1, 1), (3, 2), (64, 256)])
@pytest.mark.parametrize(("head", "query", "chunk"), REDUCTIONS)
def test_every_reduction_equals_the_definition(head, query, chunk, tiles):
    config = settings_for(head_reduce=head, query_reduce=query, chunk_reduce=chunk)
    allowed = torch.rand(9, generator=torch.Generator().manual_seed(5)) < 0.7
    allowed[0] = True
    stored, plain = small(documents([1, 2, 7, 1, 4, 3, 1, 6, 2], config, allowed=allowed))
    queries, mask = question(config, rows=2)
    tiling = {"tile_chunks": tiles[0], "tile_tokens": tiles[1]}
    found = all_scores(queries, mask, [stored], config, **tiling)
    wanted = expected_scores(queries, mask, [plain], config)[:, allowed]
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(
        route(queries, mask, [stored], 3, config, **tiling).ordinals,
        route(queries, mask, [plain], 3, config, **tiling).ordinals,
    )


def test_the_kernels_plain_twin_agrees():
    config = settings_for(query_reduce="max")
    stored, _ = small(documents(counts_for(100), config))
    queries, mask = question(config, rows=2)
    own = route(queries, mask, [stored], 10, config)
    left = collapse_heads(queries, config.kv_heads)[:, None]
    twin = route_topk(left, mask, stored.keys, stored.offsets, 10, scales=stored.scales)
    assert torch.equal(own.ordinals, twin.documents)
    assert torch.allclose(own.scores, twin.scores, rtol=1e-5, atol=1e-5)


def test_scales_belong_to_int8_and_fit():
    config = settings_for()
    stored, plain = small(documents([2, 3], config))
    queries, mask = question(config)
    for block in (
        stored._replace(scales=None),
        stored._replace(scales=stored.scales[:4]),
        plain._replace(scales=stored.scales),
    ):
        with pytest.raises(InvalidQueryError, match="scales"):
            route(queries, mask, [block], 1, config)
