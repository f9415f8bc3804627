"""Words beside routing keys: the sum is exact, follows what is stored, and sees nobody else's documents."""

import pytest

from facade import TOPICS, opened, topics
from msa_plugin.prompts import document_text
from msa_plugin.retrieval.words import depth
from said_words import shares

QUESTION = "Is there a text on beekeeping and the violin?"


def texts(memory):
    return {i: memory.get([i])[i] for i in memory.ids()}


def expected(plain, documents, weight, question=QUESTION):
    """Every document's routing score plus its share of words, by definition."""
    names = [d["id"] for d in documents]
    words = shares([document_text(d.get("title", ""), d["text"]) for d in documents], question)
    routed = {hit.id: hit.score for hit in plain.retrieve(question, k=len(documents))}
    return {n: routed[n] + weight * float(w) for n, w in zip(names, words, strict=True)}


def test_the_score_is_the_sum(tmp_path, backbone):
    with opened(tmp_path / "a", backbone) as plain, opened(tmp_path / "b", backbone, lexical=0.7) as both:
        plain.add(topics())
        both.add(topics())
        wanted = expected(plain, topics(), 0.7)
        hits = both.retrieve(QUESTION, k=8)
        assert {h.id: h.score for h in hits} == pytest.approx(wanted, abs=1e-5)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        assert {hits[0].id, hits[1].id} == {"beekeeping", "violin"}
        for hit in hits:  # what words added is the score beyond the layers' parts
            words = hit.score - sum(hit.layer_scores.values())
            assert (words > 0.05) == (hit.id in ("beekeeping", "violin")) and words > -1e-5
        low, high = both.engine.retriever.score_bounds
        assert all(low <= h.score <= high for h in hits) and high == pytest.approx(
            plain.engine.retriever.score_bounds[1] + 0.7
        )


def test_words_find_what_keys_rank_low(tmp_path, backbone, monkeypatch):
    """A candidate by words alone gets both scores too."""
    monkeypatch.setattr("msa_plugin.retrieval.words.depth", lambda k: k)
    monkeypatch.setattr("msa_plugin.retrieval.retriever.depth", lambda k: k)
    with opened(tmp_path / "a", backbone) as plain, opened(tmp_path / "b", backbone, lexical=9.0) as both:
        plain.add(topics())
        both.add(topics())
        last = plain.retrieve("a text", k=8)[-1].id
        question = f"a text {last}"
        if plain.retrieve(question, k=1)[0].id == last:
            pytest.skip("the random router finds it by itself")
        [hit] = both.retrieve(question, k=1)
        assert hit.id == last
        assert hit.score == pytest.approx(expected(plain, topics(), 9.0, question)[last], abs=1e-4)


def test_it_follows_the_bank(tmp_path, backbone):
    with opened(tmp_path, backbone, lexical=2.0) as memory:
        memory.add(topics(4))
        assert memory.retrieve("the saffron", k=1)[0].id != "saffron"
        memory.add(topics(8)[4:])
        assert memory.retrieve("the saffron", k=1)[0].id == "saffron"
        memory.update({"id": "violin", "text": "saffron saffron saffron saffron", "title": "vio"})
        assert {h.id for h in memory.retrieve("the saffron", k=2)} == {"saffron", "violin"}
        memory.delete(["saffron", "violin"])
        assert {h.id for h in memory.retrieve("the saffron", k=8)} == {*TOPICS} - {"saffron", "violin"}
        even = memory.retrieve("the glacier", k=8, filter={"even": True})
        assert even and all(h.metadata["even"] for h in even)


def test_candidates_by_words_are_a_few_times_as_many_and_at_least_a_hundred():
    assert depth(1) == 100 and depth(50) == 200
