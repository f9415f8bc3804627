"""Scores and selections recorded from the reference implementation."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from all_scores import all_scores
from msa_plugin.config import RoutingConfig
from msa_plugin.retrieval.scorer import route
from msa_plugin.types import KeyBlock

GOLDEN = Path(os.environ.get("MSA_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden")
CASES = sorted(
    p.name for p in GOLDEN.glob("*") if (p / "inputs.safetensors").exists() and not p.name.endswith("_train")
)
pytestmark = pytest.mark.skipif(not CASES, reason=f"no recorded cases in {GOLDEN} (set MSA_GOLDEN)")


class Case:
    def __init__(self, name):
        self.folder = GOLDEN / name
        self.expected = load_file(self.folder / "expected.safetensors")
        raw = json.loads((self.folder / "config.json").read_text())
        msa = raw["msa_config"]
        self.layers = [int(x) for x in msa["router_layer_idx"].split(",")]
        self.cosine = msa["decouple_router"] and msa["aux_loss_method"] == "INFONCE"
        self.shape = {"heads": raw["num_attention_heads"], "kv_heads": raw["num_key_value_heads"]}
        self.dim = self.expected[f"layer{self.layers[0]}.pooled_router_k"].shape[-1]
        self.pooling = msa["pooling_kernel_size"]

    def config(self, layer, head="mean", query="max", chunk="max"):
        reductions = {"head_reduce": head, "query_reduce": query, "chunk_reduce": chunk}
        return RoutingConfig(layers=(layer,), head_dim=self.dim, pooling=self.pooling, **reductions, **self.shape)

    def block(self, layer):
        keys = self.expected[f"layer{layer}.pooled_router_k"]
        documents, counts = self.expected["chunk_to_doc"].unique_consecutive(return_counts=True)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return KeyBlock(keys.transpose(0, 1).flatten(1), offsets, documents, None)

    def question(self, prefix, layer):
        queries = self.expected[f"{prefix}.layer{layer}.router_q"]
        queries = queries if self.cosine else queries * self.dim**-0.5
        return queries, self.expected[f"{prefix}.layer{layer}.router_q_mask"].bool()

    def prefixes(self):
        return sorted({k.split(".")[0] for k in self.expected if k.endswith(".router_q")})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tile", [1, 5, 16384])
def test_scores_and_selection(name, tile):
    case = Case(name)
    assert case.prefixes()
    for prefix in case.prefixes():
        for layer in case.layers:
            queries, mask = case.question(prefix, layer)
            blocks, config = [case.block(layer)], case.config(layer)
            recorded = case.expected[f"{prefix}.layer{layer}.doc_scores"]
            scores = all_scores(queries, mask, blocks, config, tile_chunks=tile, tile_tokens=tile)
            torch.testing.assert_close(scores, recorded, atol=1e-5, rtol=0)
            ids = case.expected[f"{prefix}.layer{layer}.topk_doc_ids"]
            routed = route(queries, mask, blocks, ids.shape[1], config, tile_chunks=tile, tile_tokens=tile)
            # With more slots than documents the reference returns a dummy slot, which is no document.
            real = min(ids.shape[1], recorded.shape[1])
            assert routed.ordinals.tolist() == ids[:, :real].tolist()


@pytest.mark.parametrize("name", [n for n in CASES if (GOLDEN / n / "expected_reduce_variants.safetensors").exists()])
def test_reduction_variants(name):
    case = Case(name)
    variants = load_file(GOLDEN / name / "expected_reduce_variants.safetensors")
    seen = 0
    for key, recorded in variants.items():
        reductions, layer, kind = key.split(".")
        if kind != "doc_scores":
            continue
        layer = int(layer.removeprefix("layer"))
        queries, mask = case.question("q0", layer)
        config = case.config(layer, *reductions.split("_"))
        for tile in (3, 16384):
            scores = all_scores(queries, mask, [case.block(layer)], config, tile_chunks=tile, tile_tokens=tile)
            torch.testing.assert_close(scores[0], recorded, atol=1e-5, rtol=0)
        seen += 1
    assert seen >= 12
