"""FAISS in front of the router: exhaustive indexes give the exact ranking, others say what they miss."""

import sys

import pytest
import torch
from torch.nn import functional as F

from facade import use_prefilter
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.quantize import stored_keys
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import ConfigError, MissingExtraError
from msa_plugin.retrieval import prefilter as module
from msa_plugin.retrieval.prefilter import GROUP, Prefilter, PrefilterSpec, recall_against_exact
from msa_plugin.retrieval.scorer import route
from msa_plugin.types import Document, EncodedDocument, Fingerprint

pytest.importorskip("faiss", reason="needs the faiss extra")

WIDTH = 16
MADE_WITH = Fingerprint("b", "t", "a", "r", "none", "keys float16", "x", 128)
CONFIG = RoutingConfig(
    layers=(0,), heads=1, kv_heads=1, head_dim=WIDTH, pooling=8, selection="shared", query_reduce="max"
)


def encoded(first, count, seed=0, longest=9, dtype=torch.float16):
    generator = torch.Generator().manual_seed(seed)
    for n in range(first, first + count):
        chunks = 1 + n % longest
        keys = F.normalize(torch.randn(chunks, WIDTH, generator=generator), dim=1)
        document = Document(f"d{n}", f"text {n}", metadata={"number": n})
        yield EncodedDocument(document, 8 * chunks, stored_keys({GROUP: keys}, dtype), {})


@pytest.fixture(params=[torch.float16, torch.int8], ids=str)
def bank(tmp_path, request):
    with MemoryBank.open(tmp_path / "bank", MADE_WITH) as opened:
        for part in range(3):
            opened.commit(list(encoded(100 * part, 100, seed=part, dtype=request.param)), "default")
        opened.delete([f"d{n}" for n in range(0, 300, 7)], "default")
        yield opened


def asked(rows=4, tokens=3, seed=9):
    generator = torch.Generator().manual_seed(seed)
    queries = F.normalize(torch.randn(rows, 1, tokens, WIDTH, generator=generator), dim=-1)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[1, 1:] = False
    return queries, mask


def exact(queries, mask, selection, k, config=CONFIG):
    return route(queries, mask, selection.key_blocks(GROUP), k, config)


def assert_same(found, wanted):
    assert torch.equal(torch.cat([f.ordinals for f in found]), wanted.ordinals)
    # Questions are scored one by one here, in a batch there: products of other heights add up in another order.
    assert torch.allclose(torch.cat([f.scores for f in found]), wanted.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "spec", ["faiss:Flat@candidates=10", "faiss:IVF8,Flat@nprobe=8,candidates=10", "coarse:all@candidates=40"]
)
def test_full_probing_is_the_exact_ranking(bank, spec):
    selection, (queries, mask) = bank.select("default"), asked()
    found = Prefilter.build(selection, CONFIG, spec)
    assert_same(found.search(queries, mask, selection, 10), exact(queries, mask, selection, 10))
    assert found.recall_against_exact(queries, mask, selection, 10) == 1.0


@pytest.mark.parametrize("reduce", ["max", "mean", "last", "pooled"])
def test_every_reduction_over_tokens_and_several_heads(bank, reduce):
    config = CONFIG.model_copy(update={"heads": 4, "kv_heads": 2, "head_dim": WIDTH // 2, "query_reduce": reduce})
    selection = bank.select("default")
    queries = F.normalize(torch.randn(3, 4, 5, WIDTH // 2, generator=torch.Generator().manual_seed(4)), dim=-1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    found = Prefilter.build(selection, config, "faiss:Flat@candidates=8")
    assert_same(found.search(queries, mask, selection, 8), exact(queries, mask, selection, 8, config))


def test_documents_of_many_chunks_do_not_crowd_out_candidates(tmp_path):
    with MemoryBank.open(tmp_path / "bank", MADE_WITH) as bank:
        base = F.normalize(torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
        near = F.normalize(base + 0.01 * torch.randn(64, WIDTH), dim=1).half()
        bank.commit([EncodedDocument(Document("long", "t"), 64, {GROUP: near}, {}), *encoded(0, 40)], "default")
        selection = bank.select("default")
        found = Prefilter.build(selection, CONFIG, "faiss:Flat@candidates=5")
        queries, mask = base[:, None, None], torch.ones(1, 1, dtype=torch.bool)
        assert_same(found.search(queries, mask, selection, 5), exact(queries, mask, selection, 5))


def test_an_approximate_index_says_what_it_misses(bank):
    selection, (queries, mask) = bank.select("default"), asked(rows=16, tokens=1)
    queries, mask = queries[:, :, :1], torch.ones(16, 1, dtype=torch.bool)
    coarse = Prefilter.build(selection, CONFIG, "faiss:IVF32,Flat@nprobe=1,candidates=10")
    recall = coarse.recall_against_exact(queries, mask, selection, 10)
    assert 0.0 < recall < 1.0
    wanted = exact(queries, mask, selection, 10).ordinals.tolist()
    found = [f.ordinals[0].tolist() for f in coarse.search(queries, mask, selection, 10)]
    assert recall == pytest.approx(sum(len(set(w) & set(f)) / 10 for w, f in zip(wanted, found, strict=True)) / 16)


def test_recall_by_hand():
    assert recall_against_exact([[1, 2], [3], []], [[2, 9], [3], [4]]) == 0.75
    assert recall_against_exact([], []) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", ["faiss:HNSW32", "faiss:PQ4x4", "faiss:IVF8,PQ4x4", "faiss:PCA8,IVF4,Flat", "coarse:4"]
)
def test_other_indexes_return_exact_scores_of_allowed_documents(bank, spec):
    selection, (queries, mask) = bank.select("default"), asked()
    scores = exact(queries, mask, selection, selection.documents)
    known = [dict(zip(o.tolist(), s.tolist(), strict=True)) for o, s in zip(*scores, strict=True)]
    found = Prefilter.build(selection, CONFIG, f"{spec}@candidates=40").search(queries, mask, selection, 10)
    for one, by_ordinal in zip(found, known, strict=True):
        assert one.ordinals.shape == (1, 10)
        for ordinal, score in zip(one.ordinals[0].tolist(), one.scores[0].tolist(), strict=True):
            assert score == pytest.approx(by_ordinal[ordinal], abs=1e-6)


@pytest.mark.parametrize("spec", ["faiss:Flat", "coarse:all"])
def test_a_filter_at_question_time_is_respected(bank, spec):
    whole, (queries, mask) = bank.select("default"), asked()
    narrow = bank.select("default", {"number": {"$lt": 40}})
    found = Prefilter.build(whole, CONFIG, f"{spec}@candidates=20")
    assert_same(found.search(queries, mask, narrow, 5), exact(queries, mask, narrow, 5))


def test_documents_added_after_the_index_are_found(bank):
    found = Prefilter.build(bank.select("default"), CONFIG, "faiss:Flat@candidates=5")
    bank.commit(list(encoded(300, 50, seed=5)), "default")
    selection, (queries, mask) = bank.select("default"), asked()
    assert_same(found.search(queries, mask, selection, 5), exact(queries, mask, selection, 5))


def test_saved_and_read_again_until_the_bank_changes(bank, tmp_path, monkeypatch):
    built = []
    build = Prefilter.build.__func__
    monkeypatch.setattr(Prefilter, "build", classmethod(lambda cls, *a: built.append(1) or build(cls, *a)))
    folder, (queries, mask) = tmp_path / "cache", asked()
    for _ in range(2):
        selection = bank.select("default")
        found = Prefilter.open(folder, MADE_WITH, selection, CONFIG, "faiss:Flat@candidates=5")
        assert_same(found.search(queries, mask, selection, 5), exact(queries, mask, selection, 5))
    assert built == [1]
    bank.delete(["d1"], "default")
    Prefilter.open(folder, MADE_WITH, bank.select("default"), CONFIG, "faiss:Flat")
    assert built == [1, 1]


def test_a_damaged_file_is_built_again(bank, tmp_path, caplog):
    selection = bank.select("default")
    Prefilter.open(tmp_path, MADE_WITH, selection, CONFIG, "faiss:Flat")
    [path] = tmp_path.glob("*.faiss")
    path.write_bytes(path.read_bytes()[:100])
    assert Prefilter.open(tmp_path, MADE_WITH, selection, CONFIG, "faiss:Flat").index.ntotal > 0
    assert "building it again" in caplog.text


def test_memory_while_building_is_bounded(bank, monkeypatch):
    monkeypatch.setattr(module, "ADD_CHUNKS", 64)
    monkeypatch.setattr(module, "TRAIN_CHUNKS", 100)
    selection, (queries, mask) = bank.select("default"), asked()
    assert module._sample(selection).shape == (100, WIDTH)
    assert max(len(p) for p in module._key_panels(selection)) <= 64
    found = Prefilter.build(selection, CONFIG, "faiss:IVF4,Flat@nprobe=4,candidates=5")
    assert_same(found.search(queries, mask, selection, 5), exact(queries, mask, selection, 5))


def test_the_engine_routes_through_it(memory, tmp_path):
    from facade import topics

    memory.add(topics())
    wanted = memory.retrieve("a text on violin", k=3)
    selection = memory.engine.bank.select("default")
    use_prefilter(memory, "faiss:Flat@candidates=3", tmp_path / "cache", selection)
    assert memory.retrieve("a text on violin", k=3) == wanted
    assert [s.id for s in memory.ask("a text on violin", max_new_tokens=1).sources]
    use_prefilter(memory, None, tmp_path / "cache", selection)
    assert memory.engine.retriever.prefilter is None


def test_spec_reads_back():
    spec = PrefilterSpec.parse("faiss:IVF256,PQ48@nprobe=32,candidates=200")
    assert (spec.factory, spec.candidates, spec.parameters) == ("IVF256,PQ48", 200, {"nprobe": 32.0})
    assert PrefilterSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    ["", "HNSW32", "faiss:", "annoy:x", "faiss:Flat@nprobe", "coarse:", "coarse:0", "coarse:x", "coarse:all@nprobe=3",
     "faiss:Flat@candidates=0.5"],
)  # fmt: skip
def test_malformed_specs(text):
    with pytest.raises(ConfigError, match="prefilter"):
        PrefilterSpec.parse(text)


@pytest.mark.parametrize(
    ("spec", "says"),
    [("faiss:Nonsense", "Nonsense"), ("faiss:IVF4096,Flat", "IVF4096"), ("faiss:Flat@nprobe=3", "nprobe")],
)
def test_what_faiss_refuses_is_said(bank, spec, says):
    with pytest.raises(ConfigError, match=says):
        Prefilter.build(bank.select("default"), CONFIG, spec)


def test_per_layer_selection_and_empty_banks_are_refused(bank):
    with pytest.raises(ConfigError, match="a prefilter is for adapters with one ranking"):
        Prefilter.build(bank.select("default"), CONFIG.model_copy(update={"selection": "per_layer"}), "faiss:Flat")
    with pytest.raises(ConfigError, match="no document"):
        Prefilter.build(bank.select("other"), CONFIG, "faiss:Flat")


def test_without_faiss_the_extra_is_named(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r'pip install "msa-plugin\[faiss\]"'):
        Prefilter.build(bank.select("default"), CONFIG, "faiss:Flat")
