"""Relevance: by definition, comparable between questions, and None where nothing was fitted."""

import math
from dataclasses import replace

import pytest

from facade import PER_LAYER, TOPICS, about, opened, topics
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.config import RelevanceConfig, RelevanceWeights
from msa_plugin.errors import ConfigError, InvalidQueryError
from msa_plugin.retrieval.bm25 import K1, B
from msa_plugin.retrieval.relevance import BESIDE, Signal, relevance
from tiny import tiny_adapter

FITTED = RelevanceConfig(
    words=RelevanceWeights(bias=-6.0, key=1.0, key_lead=1.0, words=9.0, words_lead=1.0),
    keys=RelevanceWeights(bias=-1.0, key=2.0, key_lead=1.0),
    unrelated=0.25,
    least=0.3,
)


def with_relevance(backbone, config=FITTED, **routing):
    adapter = tiny_adapter(backbone, **routing)
    return replace(adapter, config=adapter.config.model_copy(update={"relevance": config}))


def test_a_signal_says_what_it_should():
    assert relevance(Signal(0.5, 0.1, 0.8, 0.3), FITTED) == pytest.approx(1 / (1 + math.exp(6 - 0.5 - 0.4 - 7.2 - 0.5)))
    assert relevance(Signal(0.5, None, 0.8, None), FITTED) == pytest.approx(
        1 / (1 + math.exp(6 - 0.5 - 0.25 - 7.2 - 0.8))
    )
    assert relevance(Signal(0.5, 0.1), FITTED) == pytest.approx(1 / (1 + math.exp(1 - 1.0 - 0.4)))
    sure = FITTED.model_copy(update={"words": RelevanceWeights(bias=-9e9, key=0, key_lead=0)})
    assert relevance(Signal(1, 0, 1, 1), sure) == pytest.approx(0)


def test_hits_are_judged_by_what_they_hold(tmp_path, backbone):
    """Of eight documents the weakest is the one compared with; the one about the question stands out."""
    with opened(tmp_path, backbone, with_relevance(backbone), lexical=1.0) as memory:
        memory.add(topics())
        hits = memory.retrieve("a text on beekeeping", k=8)
        assert hits[0].id == "beekeeping" and hits[0].relevance > 0.5
        keys = [sum(h.layer_scores.values()) for h in hits]
        rare = math.log(1 + (108 - 1 + 0.5) / 1.5)  # of 8 documents, and of 100 that have nothing
        common = math.log(1 + (108 - 8 + 0.5) / 8.5)
        stems = ["bee", "beekeep", "beekeep", "beekeep", "text", "beekeep", "noth", "beekeep"]  # with its title
        relative = K1 * (1 - B + B * len(stems) / 60)
        share = (rare * 5 / (relative + 5) + common / (relative + 1)) / (rare + common)
        beside = common / (K1 * (1 - B + B * len(stems) / 60) + 1) / (rare + common)
        wanted = relevance(Signal(keys[0], sorted(keys)[0], share, beside), FITTED)
        assert hits[0].relevance == pytest.approx(wanted, abs=0.02)
        assert all(h.relevance < hits[0].relevance for h in hits[1:])
        # The same for one hit as for many, and alone as in a batch.
        assert memory.retrieve("a text on beekeeping", k=1)[0].relevance == pytest.approx(hits[0].relevance)
        both = memory.retrieve(["a text on beekeeping", "a text on nothing that is here"], k=1)
        assert both[0][0].relevance == pytest.approx(hits[0].relevance)
        assert both[1][0].relevance < 0.3 < both[0][0].relevance


def test_a_document_is_as_relevant_among_many_as_among_few(tmp_path, backbone):
    with opened(tmp_path, backbone, with_relevance(backbone), lexical=1.0) as memory:
        memory.add(
            [*topics(), *({"id": f"n{i}", "text": f"Note {i} about {topic}s."} for i, topic in enumerate(TOPICS * 4))]
        )
        rows = {k: {hit.id: hit.relevance for hit in memory.retrieve("a text on beekeeping", k=k)} for k in (2, 8, 40)}
        assert all(rows[k][name] == pytest.approx(rows[40][name]) for k in (2, 8) for name in rows[k])
        assert len(rows[40]) == 40


def test_a_best_match_is_not_relevant_for_being_the_best(tmp_path, backbone):
    with opened(tmp_path, backbone, with_relevance(backbone), lexical=1.0) as memory:
        memory.add(topics())
        best = memory.retrieve("What is the capital of Peru?", k=3)
        assert best[0].relevance < 0.1
        assert memory.retrieve("What is the capital of Peru?", k=3, min_relevance=0.1) == []
        kept = memory.retrieve("a text on beekeeping", k=8, min_relevance=0.5)
        assert [h.id for h in kept] == ["beekeeping"]
        with pytest.raises(InvalidQueryError, match="from 0 to 1"):
            memory.retrieve("a text", min_relevance=2)


def test_small_memories_and_filters_are_judged_too(tmp_path, backbone):
    with opened(tmp_path, backbone, with_relevance(backbone), lexical=1.0) as memory:
        memory.add(topics(3))
        [hit] = memory.retrieve("beekeeping", k=5, filter={"number": 1})
        assert hit.id == "beekeeping" and hit.relevance > 0.5
        assert memory.retrieve("violins of Cremona", k=5)[0].relevance < 0.5


def test_what_stands_elsewhere_in_a_long_document_does_not_count(tmp_path, backbone):
    long = " ".join(about(topic) for topic in TOPICS for _ in range(12))
    with opened(tmp_path, backbone, with_relevance(backbone), lexical=1.0) as memory:
        memory.add([*topics(), {"id": "book", "text": long}])
        questions = [f"{a} and {b}" for a in TOPICS[:3] for b in TOPICS[5:]]
        for question, row in zip(questions, memory.retrieve(questions, k=9), strict=True):
            [book] = [h for h in row if h.id == "book"]
            assert book.relevance < 0.9, question  # no place in it speaks of both


def test_without_words_keys_judge_alone(tmp_path, backbone):
    with opened(tmp_path, backbone, with_relevance(backbone), lexical=0, titles=0, mentions=0) as memory:
        memory.add(topics())
        for hit in memory.retrieve("who are you?", k=8):
            assert 0 < hit.relevance < 1
    with opened(tmp_path / "b", backbone, with_relevance(backbone), lexical=1.0) as memory:
        memory.add(topics())
        row = memory.retrieve("who is it?", k=8)  # nothing but stop words
        keys = sorted((sum(h.layer_scores.values()) for h in row), reverse=True)
        wanted = relevance(Signal(keys[0], keys[BESIDE - 1]), FITTED)
        assert max(h.relevance for h in row) == pytest.approx(wanted, abs=1e-4)


def test_an_adapter_that_was_not_fitted_knows_none(tmp_path, backbone):
    with opened(tmp_path, backbone, lexical=1.0) as memory:
        memory.add(topics())
        assert {h.relevance for h in memory.retrieve("a text", k=3)} == {None}
        with pytest.raises(ConfigError, match="msa relevance"):
            memory.retrieve("a text", k=3, min_relevance=0.5)
    with pytest.raises(ConfigError, match="msa relevance"):
        opened(tmp_path, backbone, abstain_below=0.5)


def test_a_ranking_is_the_same_with_and_without(tmp_path, backbone):
    with (
        opened(tmp_path / "a", backbone, lexical=1.0, titles=0.4) as plain,
        opened(tmp_path / "b", backbone, with_relevance(backbone), lexical=1.0, titles=0.4) as judged,
    ):
        for memory in (plain, judged):
            memory.add(topics())
        for k in (1, 3, 8):
            one, other = (memory.retrieve("beekeeping by the harbour", k=k) for memory in (plain, judged))
            assert [(h.id, h.score) for h in one] == [(h.id, h.score) for h in other]


def test_it_travels_with_the_adapter_and_changes_no_bank(tmp_path, backbone):
    plain, judged = tiny_adapter(backbone), with_relevance(backbone)
    assert plain.hash() == judged.hash()
    plain.save(tmp_path / "plain")
    judged.save(tmp_path / "judged")
    assert "relevance" not in (tmp_path / "plain" / "adapter.json").read_text()
    assert Adapter.load(tmp_path / "judged").config.relevance == FITTED
    assert Adapter.load(tmp_path / "plain").config.relevance is None
    with pytest.raises(ConfigError, match="selection='shared'"):
        layered = tiny_adapter(backbone, **PER_LAYER).config
        type(layered)(**{**layered.model_dump(), "relevance": FITTED.model_dump()})
