"""Every system by its name: that it can be made and asked, what names mean, and what is said about wrong ones."""

from __future__ import annotations

import sys

import pytest
from system_toys import ids, static_model, toy_dataset, workspace

from msa_plugin.bench.base import Answers, Cost, System
from msa_plugin.bench.systems import NAMES, Options, create, parse
from msa_plugin.bench.systems.system_spec import Parsed, Rerank, parse_one
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.embedding import models
from msa_plugin.embedding.sentence import SentenceEmbedder
from msa_plugin.errors import ConfigError, MissingExtraError
from msa_plugin.types import Document

FINDING = [
    "msa", "msa-interleave", "msa+faiss:Flat", "msa+coarse:16", "msa+lexical:2", "msa-interleave+lexical+coarse:16",
    "msa+lexical:1+titles", "msa+lexical:1+titles+mentions", "bm25", "dense", "dense+lexical:2",
    "dense+lexical+titles:0.5", "dense+mentions:0.5", "dense-same-backbone", "hybrid", "hybrid+titles",
    "fusion:msa~bm25", "iterative", "iterative:bm25", "decompose", "bm25+rerank", "iterative:(bm25+rerank@2)",
    "decompose:(msa+faiss:Flat)+rerank@3",
]  # fmt: skip
ANSWERING = ("msa", "msa-interleave", "closed-book", "full-context", "gold", "lures")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    return static_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory, backbone):
    return workspace(tmp_path_factory.mktemp("toy"), backbone)


@pytest.fixture
def offline(monkeypatch, packaged):
    """The default embedding model is a tiny one."""
    monkeypatch.setattr(models, "packaged_model", lambda: packaged)


def test_every_name_is_tried_here():
    kinds = {parse_one(name).kind for name in (*FINDING, *ANSWERING)}
    assert kinds == set(NAMES)


@pytest.mark.parametrize("name", FINDING)
def test_every_system_finds(name, toy, offline):
    system = create(name, toy)
    assert isinstance(system, System)
    assert system.name == name
    cost = system.prepare()
    assert isinstance(cost, Cost)
    assert cost.seconds > 0
    assert cost.tokens == toy.memory.stats().tokens
    assert cost.disk_bytes > cost.memory_bytes / 10 > 0
    known = {d.id for d in toy.dataset.documents}
    questions = [q.text for q in toy.dataset.questions[:3]]
    found = system.find(questions, 3)
    assert [len(f.ranking) <= 3 for f in found] == [True] * 3
    for question, one in zip(questions, found, strict=True):
        assert len(one.ranking) >= 1
        assert set(ids(one)) <= known
        scores = [hit.score for hit in one.ranking]
        assert scores == sorted(scores, reverse=True)
        assert one.queries[0] == question
        assert "encode" in one.seconds
        assert {"search", "route"} & set(one.seconds)
        assert all(seconds >= 0 for seconds in one.seconds.values())
    everything = system.find(questions[:1], 1000)[0]
    assert len(set(ids(everything))) == len(everything.ranking) <= len(known)
    assert ids(everything)[:2] == ids(found[0])[:2]
    assert ids(system.find(questions[:1], 1000)[0]) == ids(everything)
    assert system.find([], 5) == []
    system.close()


@pytest.mark.parametrize("name", ANSWERING)
def test_every_answering_system_answers(name, toy):
    system = create(name, toy)
    assert isinstance(system, Answers)
    if hasattr(system, "prepare"):
        system.prepare()
    replies = system.answer([q.text for q in toy.dataset.questions[:2]])
    assert [r.output_tokens <= 3 for r in replies] == [True, True]
    assert all(r.input_tokens > 20 for r in replies)
    assert system.answer([]) == []


def test_what_answers_is_read_by_one_and_left_out_by_the_other(tmp_path, backbone):
    documents = tuple(Document(f"d{n}", f"The mill number {n} stands by the river.") for n in range(6))
    questions = (
        Question("one", "Which mill stands by the river?", ("0",), {"d0": 1}),
        Question("two", "What of the mill number 3?", ("3",), {"d3": 1, "d4": 1}),
    )
    asked = [q.text for q in questions]
    space = workspace(tmp_path, backbone, Dataset("mills", documents, questions))
    gold, lures = create("gold", space), create("lures", space)
    lures.prepare()
    assert [set(r.read) for r in gold.answer(asked)] == [{"d0"}, {"d3", "d4"}]
    wrong = [set(r.read) for r in lures.answer(asked)]
    assert [len(read) for read in wrong] == [Options().per_round] * 2
    assert not wrong[0] & {"d0"} and not wrong[1] & {"d3", "d4"}
    with pytest.raises(ConfigError, match="own questions"):
        gold.answer(["What is a stranger?"])


@pytest.mark.parametrize("name", ["msa", "bm25", "dense", "dense-same-backbone", "hybrid", "iterative:bm25"])
def test_empty_corpus(name, tmp_path, backbone, offline):
    empty = workspace(tmp_path, backbone, Dataset("empty", (), ()))
    system = create(name, empty)
    assert system.prepare().tokens == 0
    assert [ids(f) for f in system.find(["a glacier"], 3)] == [[]]


def test_each_call_makes_a_system_of_its_own(toy):
    one, other = create("bm25", toy), create("bm25", toy)
    one.prepare()
    other.prepare()
    one.close()
    assert ids(other.find(["violin"], 1)[0]) == ["violin"]


def test_names_are_taken_apart():
    assert parse_one("dense:org/model-v2") == Parsed("dense", "org/model-v2")
    assert parse_one("iterative").bases == (Parsed("dense"),)
    assert parse_one("hybrid").bases == (Parsed("bm25"), Parsed("dense"))
    assert parse_one("fusion:(msa,dense:a/b)") == parse_one("fusion:msa~dense:a/b")
    reranked = parse_one("iterative:(dense:m+rerank@7)+rerank:org/cross")
    assert reranked.reranks == (Rerank(None, "org/cross"),)
    assert reranked.bases == (Parsed("dense", "m", reranks=(Rerank(7, None),)),)
    assert parse_one("dense:a+b").argument == "a+b"
    index = parse_one("msa+faiss:IVF4,Flat@nprobe=2+rerank")
    assert index.prefilter.startswith("faiss:IVF4,Flat@")
    assert index.reranks == (Rerank(None, None),)
    words = parse_one("msa+lexical+coarse:all+rerank")
    assert (words.lexical, words.prefilter, len(words.reranks)) == (0.7, "coarse:all@candidates=128", 1)
    assert parse_one("msa-interleave+lexical:1.5").lexical == 1.5
    named = parse_one("msa+lexical:1+titles+rerank")
    assert (named.lexical, named.titles, len(named.reranks)) == (1.0, 0.4, 1)
    assert parse_one("bm25+titles:0.5").titles == 0.5
    linked = parse_one("msa+lexical:1+titles+mentions+rerank")
    assert (linked.titles, linked.mentions, len(linked.reranks)) == (0.4, 0.4, 1)


def test_lists_of_names():
    assert parse("msa, bm25,fusion:(msa,bm25) dense:x") == ("msa", "bm25", "fusion:(msa,bm25)", "dense:x")
    assert parse(["msa", "fusion:msa,bm25"]) == ("msa", "fusion:msa,bm25")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bm52", "no system 'bm52'.*bm25"),
        ("", "no system ''"),
        ("bm25:x", "takes no argument"),
        ("dense:", "takes no argument"),
        ("bm25+renark", "no system 'bm25.renark'"),
        ("bm25+rerank@0", "not rerank"),
        ("bm25+faiss:Flat", "directly behind msa"),
        ("bm25+coarse:all", "directly behind msa"),
        ("bm25+lexical", "behind msa"),
        ("msa+rerank+lexical", "before any"),
        ("msa+lexical+lexical:2", "one .lexical"),
        ("msa+lexical:0", "above 0"),
        ("msa+titles:0", "above 0"),
        ("iterative+titles", "behind msa"),
        ("msa+titles+lexical", "before any"),
        ("msa+titles+titles", "one .titles"),
        ("msa+mentions:0", "above 0"),
        ("msa+mentions+titles", "before any"),
        ("msa+mentions+lexical", "before any"),
        ("iterative+mentions", "behind msa"),
        ("msa+lexical:much", "above 0"),
        ("msa+coarse:some", "a prefilter is"),
        ("msa+faiss:", "a prefilter is"),
        ("closed-book+rerank", "nothing to rerank"),
        ("iterative:closed-book", "does not rank passages"),
        ("fusion:msa", "at least two"),
        ("fusion:(msa~bm25", "parentheses"),
    ],
)
def test_wrong_names(name, said, toy):
    with pytest.raises(ConfigError, match=said):
        create(name, toy)


@pytest.mark.parametrize("names", ["", [], "msa,msa", "msa,nothing"])
def test_wrong_lists_of_names(names):
    with pytest.raises(ConfigError):
        parse(names)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("dense", "faiss"),
        ("dense", "sentence_transformers"),
        ("dense-same-backbone", "faiss"),
        ("hybrid", "faiss"),
        ("iterative", "sentence_transformers"),
        ("msa+rerank:some/cross-encoder", "sentence_transformers"),
    ],
)
def test_a_package_that_is_absent_is_named_at_once(name, module, toy, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "msa-plugin\[(bench|faiss)\]"'):
        create(name, toy)


def test_numbers_below_one_are_refused():
    with pytest.raises(ConfigError, match="rounds, per_round"):
        Options(rounds=0, per_round=0)


def test_toy_questions_are_answered_by_their_own_words(toy):
    assert toy_dataset().documents == toy.dataset.documents
    system = create("bm25", toy)
    system.prepare()
    found = system.find([q.text for q in toy.dataset.questions], 1)
    assert [ids(f)[0] for f in found] == [d.id for d in toy.dataset.documents]


@pytest.mark.parametrize(("said", "dtype"), [("auto", None), ("bfloat16", "bfloat16")])
def test_an_embedding_model_computes_in_what_the_memory_was_told(said, dtype, backbone, tmp_path, offline, monkeypatch):
    asked = []

    def embedder(model, device, computes):
        asked.append(computes)
        return SentenceEmbedder(model, device, computes)

    monkeypatch.setattr("msa_plugin.bench.systems.dense.SentenceEmbedder", embedder)
    create("dense", workspace(tmp_path, backbone, dtype=said)).prepare()
    assert asked == [dtype]
