"""Numbers recorded from the reference (golden spec), reproduced through our own encoder, bank, router and attention.

Runs every case folder under MSA_GOLDEN (default: the `shared/golden` folder beside the repository), whatever its
shapes; folders that end in `_train`, and `D_text` (test_reference_loop.py), record things that are tested elsewhere.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from reference_call import ReferencePass
from safetensors.torch import load_file
from torch import Tensor

from all_scores import all_scores
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.attention import CausalRows, ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.checkpoint import load_reference
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.tiers import Tiers
from msa_plugin.config import TierConfig
from msa_plugin.encoding.encoder import Encoder, WindowLatents
from msa_plugin.retrieval.assembly import BankSource, TemplateHead, encode_head
from msa_plugin.retrieval.scorer import KeySearch
from msa_plugin.retrieval.search import BankSearch
from msa_plugin.types import Document, EncodedDocument, Fingerprint

ROOT = Path(os.environ.get("MSA_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden")
STATES, LOGITS = 1e-4, 1e-3


def _cases():
    if not ROOT.is_dir():
        return []
    folders = [p for p in sorted(ROOT.iterdir()) if (p / "inputs.safetensors").is_file()]
    return [p for p in folders if not p.name.endswith("_train") and p.name != "D_text"]


def _queries(case):
    names = {key.split(".")[0] for key in load_file(str(case / "expected.safetensors")) if ".stage2.logits" in key}
    return sorted(names)


CASES = _cases()
RUNS = [(case, query) for case in CASES for query in _queries(case)]
pytestmark = pytest.mark.skipif(not CASES, reason=f"no recorded cases under {ROOT}; set MSA_GOLDEN")


@dataclass
class Case:
    backbone: Backbone
    adapter: Adapter
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    latents: list[WindowLatents]
    documents: list[list[int]]
    bank: MemoryBank
    head: TemplateHead
    top_k: int


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    loaded = {}

    def get(path):
        if path not in loaded:
            loaded[path] = _load(path, tmp_path_factory.mktemp(path.name))
        return loaded[path]

    yield get
    for case in loaded.values():
        case.bank.close()


def _load(path, folder):
    backbone, adapter = load_reference(path)
    inputs = load_file(str(path / "inputs.safetensors"))
    lengths = inputs["doc_lengths"].tolist()
    documents = [part.tolist() for part in inputs["doc_token_ids"].split(lengths)]
    # A small batch budget mixes lengths, so that padding is exercised too.
    encoder = Encoder(
        backbone, adapter.router, adapter.config.reading, window=1 << 20, batch_tokens=64, keys_dtype=torch.float32
    )
    latents = encoder.encode_windows(documents)
    bank = MemoryBank.open(folder / "bank", Fingerprint("b", "t", "a", "r", "c", "float32", "none", 4096))
    with bank.writing():
        bank.commit(
            [
                EncodedDocument(Document(str(i), f"document {i}"), len(ids), part.keys, part.content)
                for i, (ids, part) in enumerate(zip(documents, latents, strict=True))
            ],
            "default",
        )
    head = encode_head(backbone, inputs["template_head_ids"].tolist())
    expected = load_file(str(path / "expected.safetensors"))
    top_k = int(inputs["meta.top_k"])
    return Case(backbone, adapter, inputs, expected, latents, documents, bank, head, top_k)


def _close(actual, expected, tolerance, what):
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} against {tuple(expected.shape)}"
    difference = (actual.float() - expected.float()).abs().max().item() if actual.numel() else 0.0
    assert difference <= tolerance, f"{what}: off by {difference:.2e}"


def _layers(case, pattern):
    found = {int(m.group(1)) for key in case.expected if (m := re.fullmatch(pattern, key))}
    assert found
    return sorted(found)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.name)
def test_memory_encoding(load, path):
    case = load(path)
    chunks = [next(iter(part.keys.values())).shape[0] for part in case.latents]
    assert chunks == case.expected["doc_num_chunks"].tolist()
    for layer in _layers(case, r"layer(\d+)\.pooled_k"):
        content = torch.cat([part.content[layer] for part in case.latents])
        _close(content[:, 0].transpose(0, 1), case.expected[f"layer{layer}.pooled_k"], STATES, f"K {layer}")
        _close(content[:, 1].transpose(0, 1), case.expected[f"layer{layer}.pooled_v"], STATES, f"V {layer}")
        keys = torch.cat([part.keys[str(layer)] for part in case.latents])
        recorded = case.expected[f"layer{layer}.pooled_router_k"]
        _close(keys, recorded.transpose(0, 1).flatten(1), STATES, f"routing keys {layer}")


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.name)
def test_stage_one_hidden_states(load, path):
    case = load(path)
    offset = case.inputs["template_head_ids"].numel()
    for ids in case.documents:
        row = torch.tensor([ids])
        hidden = _hidden_states(case, CausalRows(), row, torch.ones_like(row).bool(), torch.arange(len(ids))[None])
        for layer, states in enumerate(hidden):
            recorded = case.expected[f"stage1.layer{layer}.hidden"][offset : offset + len(ids)]
            _close(states[0], recorded, STATES, f"stage 1, layer {layer}")
        offset += len(ids)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.name)
def test_template_head(load, path):
    case = load(path)
    for layer in _layers(case, r"layer(\d+)\.template_prefix_k"):
        _close(case.head.keys[layer], case.expected[f"layer{layer}.template_prefix_k"], STATES, f"head K {layer}")
        _close(case.head.values[layer], case.expected[f"layer{layer}.template_prefix_v"], STATES, f"head V {layer}")


def _hidden_states(case, state, ids, mask, positions):
    return _run(case, state, ids, mask, positions)[1]


def _run(case, state, ids, mask, positions):
    hidden = []
    handles = [
        layer.register_forward_hook(lambda m, a, out: hidden.append(out[0] if isinstance(out, tuple) else out))
        for layer in decoder_layers(case.backbone.model)
    ]
    try:
        logits = case.backbone.run(state, ids, mask, positions, logits="all")
    finally:
        for handle in handles:
            handle.remove()
    return logits, hidden


@dataclass
class Stage2:
    state: ForwardState
    source: BankSource
    ids: Tensor
    mask: Tensor
    votes: Tensor
    logits: Tensor
    hidden: list[Tensor]


def _stage2(case, query, kind=ForwardState):
    rows = "q0" if query == "pos19" else query
    ids, mask, roles = (
        torch.atleast_2d(case.inputs[f"{rows}.{n}"]) for n in ("input_ids", "attention_mask", "doc_ids")
    )
    positions = torch.atleast_2d(case.inputs[f"{query}.position_ids"])
    mask = mask.bool()
    votes = (roles == 0) & mask
    config = case.adapter.config
    selection = case.bank.select("default", None)
    tiers = Tiers(case.bank, TierConfig(), case.backbone.device)
    search = BankSearch(case.bank, config.routing, KeySearch(tiers.keys, 5, 7))

    def route(layer, queries):
        return search.route(layer, queries, votes, case.top_k, selection)

    source = BankSource(tiers.content, config.reading.layers, case.head, ids.shape[0], route=route)
    state = kind(source=source, router=case.adapter.router, keep_cache=True)
    logits, hidden = _run(case, state, ids, mask, positions)
    return Stage2(state, source, ids, mask, votes, logits, hidden)


@pytest.mark.parametrize(("path", "query"), RUNS, ids=[f"{p.name}-{q}" for p, q in RUNS])
def test_routing(load, path, query):
    case = load(path)
    run = _stage2(case, query)
    config = case.adapter.config.routing
    for layer in config.layers:
        name = f"{query}.layer{layer}"
        recorded = case.expected[f"{name}.router_q"]
        real = run.mask[:, None, :, None].expand_as(recorded)
        _close(run.source.queries[layer][real] / config.scale, recorded[real], STATES, "routing queries")
        blocks = case.bank.select("default", None).key_blocks(str(layer))
        scores = all_scores(run.source.queries[layer], run.votes, blocks, config)
        _close(scores, case.expected[f"{name}.doc_scores"], STATES, "document scores")
        _same_ranking(case, run, layer, name)


def _same_ranking(case, run, layer, name):
    wanted, scores = case.expected[f"{name}.topk_doc_ids"], case.expected[f"{name}.topk_doc_scores"]
    ordinals = run.source.routed[layer].ordinals
    first = min(ordinal for ordinal, *_ in case.bank.lookup(["0"], "default").values())
    for row in range(wanted.shape[0]):
        # The reference fills up with a dummy document when it is asked for more than there are.
        real = scores[row] > torch.finfo(torch.float32).min / 2
        assert (ordinals[row] - first).tolist() == wanted[row][real].tolist()


@pytest.mark.parametrize(("path", "query"), RUNS, ids=[f"{p.name}-{q}" for p, q in RUNS])
def test_contexts_and_logits(load, path, query):
    case = load(path)
    run = _stage2(case, query)
    for layer in range(case.backbone.spec.layers):
        keys, values = _contexts(case, run, layer)
        _close(keys, case.expected[f"{query}.layer{layer}.ctx_k"], STATES, f"context K {layer}")
        _close(values, case.expected[f"{query}.layer{layer}.ctx_v"], STATES, f"context V {layer}")
        recorded = case.expected[f"{query}.layer{layer}.stage2_hidden"]
        _close(run.hidden[layer][run.mask], recorded[run.mask], STATES, f"stage 2, layer {layer}")
    recorded = case.expected[f"{query}.stage2.logits"]
    _close(run.logits[run.mask], recorded[run.mask], LOGITS, "stage 2 logits")


def _contexts(case, run, layer):
    """K and V of every row's real slots, rows concatenated, [S, KV, D]."""
    keys, values = run.state.caches[layer].current
    context = run.source.context(layer)
    memory = keys.shape[2] - run.ids.shape[1]
    seen = context.mask if context.mask is not None else run.mask.new_ones(run.ids.shape[0], memory)
    real = torch.cat([seen, run.mask], dim=1)
    return keys.transpose(1, 2)[real], values.transpose(1, 2)[real]


@pytest.mark.parametrize(("path", "query"), RUNS, ids=[f"{p.name}-{q}" for p, q in RUNS])
def test_greedy_decode(load, path, query):
    case = load(path)
    run = _stage2(case, query)
    wanted = case.expected[f"{query}.decode.next_token"]
    ids = case.expected[f"{query}.decode.input_ids"]
    positions = case.expected[f"{query}.decode.position_ids"]
    assert run.logits[:, -1].argmax(-1).tolist() == wanted[:, 0].tolist()
    one = torch.ones(ids.shape[0], 1, dtype=torch.bool)
    for step in range(ids.shape[1]):
        logits = case.backbone.run(run.state, ids[:, step : step + 1], one, positions[:, step : step + 1])
        _close(logits[:, -1], case.expected[f"{query}.decode.logits"][:, step], LOGITS, f"step {step}")
        assert logits[:, -1].argmax(-1).tolist() == wanted[:, step + 1].tolist()


@pytest.mark.parametrize(
    "path", [p for p in CASES if (p / "expected_block_decode.safetensors").is_file()], ids=lambda p: p.name
)
@pytest.mark.parametrize(
    ("kind", "recorded"), [(ForwardState, "causal_one_by_one"), (ReferencePass, "bidirectional_reference")]
)
def test_tokens_fed_together(load, path, kind, recorded):
    """Causal by default; both ways in the reference."""
    case = load(path)
    block = load_file(str(path / "expected_block_decode.safetensors"))
    run = _stage2(case, "q0", kind)
    ids, positions = block["block.input_ids"][None], block["block.position_ids"][None]
    logits = case.backbone.run(run.state, ids, torch.ones_like(ids).bool(), positions, logits="all")
    _close(logits[0], block[f"block.logits_{recorded}"], LOGITS, "inserted block")
