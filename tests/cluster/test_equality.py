"""A cluster answers exactly as one process that holds the same documents."""

import pytest
import torch
from local import LocalActors

from facade import PER_LAYER, about, topics
from msa_plugin.cluster.search import merged
from msa_plugin.retrieval.scorer import RoutedDocuments
from tiny import tiny_adapter

QUESTIONS = [about("violin"), about("glacier"), "what keeps bees?"]


def corpus():
    """Topics, each three times under different ids, so that whole groups of documents score the same."""
    copies = [
        {**topic, "id": f"{topic['id']}-{copy}", "metadata": {**topic["metadata"], "copy": copy}}
        for copy in range(3)
        for topic in topics()
    ]
    return [*copies, {"id": "long", "text": " ".join(about(t["id"]) for t in topics()), "metadata": {"copy": 9}}]


def filled(memory):
    memory.add(corpus())
    memory.add({"id": "violin-1", "text": about("violin"), "title": "another", "metadata": {"copy": 1, "even": True}})
    memory.delete(["glacier-0", "meteor-2"])
    memory.add({"id": "glacier-0", "text": about("glacier"), "title": "gla", "metadata": {"copy": 7}})
    return memory


def seen(hits):
    return [(h.id, h.score, dict(h.layer_scores), h.ordinal, h.text, h.title, dict(h.metadata)) for h in hits]


@pytest.fixture
def both(open_plain, open_cluster):
    return filled(open_plain()), filled(open_cluster())


def test_documents_are_the_same(both):
    plain, cluster = both
    assert list(cluster.ids()) == list(plain.ids())
    assert cluster.get(["violin-1", "nothing", "long"]) == plain.get(["violin-1", "nothing", "long"])
    a, b = plain.stats(), cluster.stats()
    assert (a.documents, a.tokens, a.chunks, a.deleted) == (b.documents, b.tokens, b.chunks, b.deleted)
    for shard in (0, 1):
        assert 0 < cluster.engine.bank.shards.all("pass_on", "count", "default")[shard] < a.documents


@pytest.mark.parametrize("k", [1, 2, 5, 12, 100])
def test_rankings_are_the_same_ties_included(both, k):
    plain, cluster = both
    rows = plain.retrieve(QUESTIONS, k)
    assert [seen(row) for row in cluster.retrieve(QUESTIONS, k)] == [seen(row) for row in rows]
    scores = [h.score for h in rows[0]]
    assert k < 5 or len(set(scores)) < len(scores)  # there are ties


def test_a_batch_of_questions_takes_two_trips_and_hits_share_nothing(open_cluster):
    memory = filled(open_cluster())
    del LocalActors.latest.calls[:]
    rows = memory.retrieve(QUESTIONS * 2, 5)
    calls = [method for _, method in LocalActors.latest.calls]
    assert (calls.count("documents"), calls.count("ranked")) == (2, 2)
    assert set(calls) <= {"documents", "ranked", "key_rows"}  # keys of what was found, for passages and relevance
    twice = [next(hit for hit in row if hit.id == rows[0][0].id) for row in (rows[0], rows[3])]
    twice[0].metadata["changed"] = True
    assert "changed" not in twice[1].metadata


@pytest.mark.parametrize(
    "where", [{"copy": 1}, {"even": True, "copy": {"$lt": 2}}, {"copy": 5}, lambda metadata: metadata.get("copy") != 0]
)
def test_filters_are_the_same(both, where):
    plain, cluster = both
    assert seen(cluster.retrieve(QUESTIONS[0], 9, filter=where)) == seen(plain.retrieve(QUESTIONS[0], 9, filter=where))


def test_namespaces_are_the_same(both, tmp_path, open_plain, open_cluster):
    for memory in both:
        memory.close()
    pairs = [(open_plain(namespace=name), open_cluster(namespace=name)) for name in ("default", "other")]
    for plain, cluster in pairs[::-1]:
        assert seen(cluster.retrieve(QUESTIONS[0], 5)) == seen(plain.retrieve(QUESTIONS[0], 5))
        plain.add(["a text of another tenant", about("violin")])
        cluster.add(["a text of another tenant", about("violin")])
        assert cluster.stats().namespaces == plain.stats().namespaces
        assert seen(cluster.retrieve(QUESTIONS[0], 5)) == seen(plain.retrieve(QUESTIONS[0], 5))


def told(answer):
    sources = [(s.id, s.score, s.round, s.text) for s in answer.sources]
    rounds = [(r.query, r.selected, r.scores) for r in answer.trace.rounds]
    return answer.text, sources, rounds, answer.trace.missed_shards


def test_answers_are_the_same(both):
    plain, cluster = both
    options = {"max_new_tokens": 4, "max_rounds": 2}
    rows = cluster.ask(QUESTIONS[:2], **options)
    assert [told(a) for a in rows] == [told(a) for a in plain.ask(QUESTIONS[:2], **options)]
    chosen = {"documents": ["long", "violin-1"], "max_new_tokens": 3}
    assert told(cluster.ask("why?", **chosen)) == told(plain.ask("why?", **chosen))
    assert "".join(cluster.stream(QUESTIONS[0], **options)) == rows[0].text


def rounded(thing):
    """Later layers route by what earlier ones read, which lies elsewhere in memory: the last bit may differ."""
    if isinstance(thing, dict):
        return {key: rounded(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [rounded(part) for part in thing]
    return round(thing, 5) if isinstance(thing, float) else thing


@pytest.mark.parametrize(
    ("routing", "settings"),
    [
        ({}, {"keys_dtype": "int8"}),
        ({}, {"reading": "kv", "window": 256}),
        ({"query_reduce": "max", "heads": 2, "kv_heads": 1, "head_dim": 24}, {"reading": "latent"}),
        (PER_LAYER, {"reading": "latent"}),
        (PER_LAYER, {"reading": "text"}),
    ],
    ids=["int8", "kv", "tokens-vote", "per-layer", "per-layer-text"],
)
def test_other_adapters_and_ways_of_reading(open_plain, open_cluster, backbone, routing, settings):
    adapter = tiny_adapter(backbone, read_latent=True, **routing)
    plain, cluster = filled(open_plain(adapter, **settings)), filled(open_cluster(adapter=adapter, **settings))
    same = rounded if routing is PER_LAYER else list
    found = [[seen(row) for row in memory.retrieve(QUESTIONS[:2], 5)] for memory in (plain, cluster)]
    assert same(found[1]) == same(found[0])
    answers = [told(memory.ask(QUESTIONS[1], max_new_tokens=3, max_rounds=1)) for memory in (plain, cluster)]
    assert same(answers[1]) == same(answers[0])


def test_an_empty_cluster_answers_as_an_empty_bank(open_plain, open_cluster):
    plain, cluster = open_plain(), open_cluster(3)
    assert cluster.retrieve("anything") == plain.retrieve("anything") == []
    plain.add("one text only")
    cluster.add("one text only")
    assert seen(cluster.retrieve("anything")) == seen(plain.retrieve("anything"))


def test_merging_keeps_the_lower_ordinal_of_a_tie():
    def found(*pairs):
        ordinals, scores = zip(*pairs, strict=True)
        return RoutedDocuments(torch.tensor([ordinals]), torch.tensor([scores]))

    best = merged([found((2, 1.0), (8, 1.0), (4, 0.5)), found((1, 1.0), (9, 1.0), (3, 0.5))], 5, torch.zeros(1))
    assert best.ordinals.tolist() == [[1, 2, 8, 9, 3]] and best.scores.tolist() == [[1.0, 1.0, 1.0, 1.0, 0.5]]
