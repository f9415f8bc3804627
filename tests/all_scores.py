"""Scores of every document by the search's own tiles, where `route` keeps the best."""

import torch

from msa_plugin.retrieval.scorer import TILE_CHUNKS, TILE_TOKENS, _ChunkScorer, _documents


@torch.no_grad()
def all_scores(queries, mask, blocks, config, *, tile_chunks=TILE_CHUNKS, tile_tokens=TILE_TOKENS):
    """Scores of every allowed document, in the order of the blocks: float32 [B, N]. Arguments and errors as `route`."""
    scorer = _ChunkScorer(queries, mask, config, tile_chunks, tile_tokens)
    columns = [torch.empty((queries.shape[0], 0), device=queries.device)]
    for block in blocks:
        for span, scores in scorer.scan(block):
            columns.append(_documents(span, scores, config)[0])
    return torch.cat(columns, 1)
