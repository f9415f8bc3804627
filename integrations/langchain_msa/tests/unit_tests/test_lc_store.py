"""The vector store: ids, metadata, scores, filters, MMR, and what it refuses."""

from __future__ import annotations

import json
from datetime import date

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import VectorStoreRetriever

from facade import TOPICS, about
from langchain_msa import MSAVectorStore
from msa_plugin.errors import ConfigError, DuplicateDocumentError, InvalidDocumentError, InvalidQueryError
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter

EMBEDDING = DeterministicFakeEmbedding(size=8)


def ids(documents):
    return [d.id for d in documents]


def test_both_call_sites_work_and_the_old_one_is_told(memory):
    with pytest.warns(UserWarning, match="does not use DeterministicFakeEmbedding") as told:
        old = MSAVectorStore.from_texts(["one", "two"], EMBEDDING, memory=memory)
    assert len(told) == 1 and told[0].filename == __file__
    assert ids(old.similarity_search("one", k=1)) == ids(old.get_by_ids(old.add_texts(["one"])))
    assert old.embeddings is None


def test_a_store_sees_what_others_do_to_its_bank(tmp_path, backbone, adapter):
    settings = {"model": backbone, "adapter": adapter}
    with (
        LatentMemory.open(tmp_path / "bank", **settings) as memory,
        LatentMemory.open(tmp_path / "bank", **settings) as other,
    ):
        store = MSAVectorStore(memory=memory)
        other.add([{"id": t, "text": about(t)} for t in TOPICS[:3]])
        assert ids(store.similarity_search(about("glacier"), k=1)) == ["glacier"]
        other.delete("glacier")
        assert "glacier" not in ids(store.similarity_search(about("glacier"), k=3)) and not store.get_by_ids(
            ["glacier"]
        )


def test_a_store_opens_its_memory_and_closes_it_when_adding_fails(tmp_path, backbone, adapter):
    settings = {"path": tmp_path / "bank", "model": backbone, "adapter": adapter}
    with pytest.raises(InvalidDocumentError):
        MSAVectorStore.from_texts([" "], **settings)
    store = MSAVectorStore.from_documents([Document(about("glacier"), id="g")], namespace="n", **settings)
    assert store.memory.namespace == "n"
    store.close()
    with LatentMemory.open(namespace="n", **settings) as memory:
        assert list(memory.ids()) == ["g"]


def test_a_memory_that_was_given_stays_open(memory):
    with pytest.raises(InvalidDocumentError):
        MSAVectorStore.from_texts([" "], memory=memory)
    assert memory.stats().documents == 0


@pytest.mark.parametrize(
    "wrong", [{}, {"memory": "bank"}, {"memory": ..., "path": "x"}, {"memory": ..., "namespace": "other"}]
)
def test_a_memory_is_given_or_opened(memory, wrong):
    with pytest.raises(ConfigError):
        MSAVectorStore.from_texts(["x"], **{k: memory if v is ... else v for k, v in wrong.items()})


def test_documents_come_back_as_they_were(memory):
    store = MSAVectorStore(memory)
    given = Document("text", id="a", metadata={"title": "T", "nested": {"x": [1, None, True]}, "size": 1.5})
    before = given.model_copy(deep=True)
    assert store.add_documents([given]) == ["a"]
    assert store.get_by_ids(["nowhere", "a"]) == store.similarity_search("text") == [before] == [given]
    store.similarity_search("text")[0].metadata["nested"]["x"].append(2)
    assert store.get_by_ids(["a"]) == [before]


def test_a_title_is_encoded_and_one_from_elsewhere_is_shown(memory):
    store = MSAVectorStore(memory)
    store.add_texts(["text"], [{"title": "glacier"}], ids=["a"])
    memory.add({"id": "b", "text": "other", "title": "violin", "metadata": {"n": 1}})
    assert [d.title for d in memory.get(["a", "b"])] == ["glacier", "violin"]
    assert [d.metadata for d in store.get_by_ids(["a", "b"])] == [{"title": "glacier"}, {"title": "violin", "n": 1}]
    for odd in (None, 7, " "):
        store.add_texts(["text"], [{"title": odd}], ids=["a"])
        assert memory.get("a")[0].title == "" and store.get_by_ids(["a"])[0].metadata == {"title": odd}


def test_ids_are_the_callers_else_the_documents_else_made_from_content(memory):
    store = MSAVectorStore(memory)
    documents = [Document("one", id="own"), Document("two", id="other"), Document("three")]
    first = store.add_documents(documents, ids=["given", None, None])
    assert first[:2] == ["given", "other"] and len(first[2]) == 32
    assert store.add_documents(documents, ids=["given", None, None]) == first
    assert memory.stats().documents == 3
    same_text = store.add_texts(["three", "three"], [{"page": 1}, {"page": 2}])
    assert len({*same_text, first[2]}) == 3


def test_adding_again_encodes_nothing_and_a_change_does(memory, monkeypatch):
    store = MSAVectorStore(memory)
    reports = []
    add = memory.add
    monkeypatch.setattr(memory, "add", lambda *a, **k: reports.append(add(*a, **k)))
    for text, metadata in (("one", {}), ("one", {}), ("two", {}), ("two", {"n": 1})):
        store.add_texts([text], [metadata], ids=["a"])
    assert [(bool(r.added), bool(r.updated), bool(r.unchanged)) for r in reports] == [
        (True, False, False),
        (False, False, True),
        (False, True, False),
        (False, True, False),
    ]
    assert [r.tokens > 0 for r in reports] == [True, False, True, False]


def test_batches_are_calls(memory, monkeypatch):
    sizes = []
    add = memory.add
    monkeypatch.setattr(memory, "add", lambda docs, **k: sizes.append(len(docs)) or add(docs, **k))
    store = MSAVectorStore(memory)
    assert store.add_texts(["a", "b", "c", "d", "e"], ids=list("abcde"), batch_size=2) == list("abcde")
    assert sizes == [2, 2, 1]
    assert store.add_documents([]) == [] and sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("metadata", "named"), [({"day": date(2020, 1, 1)}, "'day'"), ({"n": float("nan")}, "'n'"), ({"x": {1, 2}}, "'x'")]
)
def test_metadata_that_json_cannot_hold_is_refused_by_name(memory, metadata, named):
    store = MSAVectorStore(memory)
    with pytest.raises(InvalidDocumentError, match=named):
        store.add_texts(["good", "bad"], [{}, metadata], ids=["a", "b"])
    assert memory.stats().documents == 0
    assert store.add_texts(["good", "bad"], [{}, metadata], ids=["a", "b"], on_invalid="skip") == ["a"]


def test_other_bad_input(memory):
    store = MSAVectorStore(memory)
    with pytest.raises(ValueError, match="1 ids for 2"):
        store.add_texts(["a", "b"], ids=["1"])
    with pytest.raises(ValueError, match="1 metadatas for 2"):
        store.add_texts(["a", "b"], [{}])
    with pytest.raises(DuplicateDocumentError):
        store.add_texts(["a", "b"], ids=["1", "1"], batch_size=1)
    with pytest.raises(ConfigError, match="batch_size"):
        store.add_texts(["a"], batch_size=0)
    with pytest.raises(ConfigError, match="on_invalid"):
        store.add_texts(["a"], on_invalid="drop")
    with pytest.raises(InvalidDocumentError, match="not str"):
        store.add_documents(["a"])
    for texts, more in (("mill", {}), (["a", "b"], {"ids": "ab"}), (["a"], {"metadatas": {"n": 1}}), (b"mill", {})):
        with pytest.raises(InvalidDocumentError, match="takes a list"):
            store.add_texts(texts, **more)
    with pytest.raises(InvalidDocumentError, match="takes a list"):
        store.add_documents("mill")
    with pytest.raises(InvalidDocumentError, match="takes a list"):
        store.add_documents([Document("a"), Document("b")], ids="ab")
    with pytest.raises(NotImplementedError, match="no embedding vectors"):
        store.similarity_search_by_vector([0.0])
    with pytest.raises(NotImplementedError, match="no embedding vectors"):
        store.max_marginal_relevance_search_by_vector([0.0])
    assert memory.stats().documents == 0
    with pytest.warns(UserWarning, match="ignores bulk_size"):
        store.add_texts(["a"], bulk_size=3)


def test_deleting(store):
    assert store.delete(["glacier", "nowhere"]) is True
    assert store.get_by_ids(["glacier"]) == [] and "glacier" not in ids(store.similarity_search(about("glacier"), k=8))
    assert store.delete([]) is True and store.memory.stats().documents == 7
    for wrong in ({}, {"ids": None}, {"ids": ["violin"], "delete_all": True}, {"where": {"number": 1}}):
        with pytest.raises(ConfigError, match="delete"):
            store.delete(**wrong)
    assert store.memory.stats().documents == 7
    assert store.delete(delete_all=True) is True
    assert store.memory.stats().documents == 0 and store.similarity_search("glacier") == []


def test_scores_are_floats_best_first_and_relevance_is_from_0_to_1(store):
    scored = store.similarity_search_with_score(about("violin"), k=8)
    assert scored[0][0].id == "violin"
    assert [s for _, s in scored] == sorted((s for _, s in scored), reverse=True)
    relevant = store.similarity_search_with_relevance_scores(about("violin"), k=8)
    low, high = store.memory.score_bounds
    for (_, score), (_, share) in zip(scored, relevant, strict=True):
        assert type(score) is float and type(share) is float
        assert share == pytest.approx((score - low) / (high - low)) and 0 <= share <= 1


def test_relevance_of_an_unbounded_score(tmp_path, backbone):
    adapter = tiny_adapter(backbone, normalize=False)
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=adapter) as memory:
        store = MSAVectorStore.from_texts(["one", "two"], memory=memory)
        relevance = store._select_relevance_score_fn()
        assert [relevance(s) for s in (-1e9, 0.0, 1e9)] == pytest.approx([0, 0.5, 1])
        assert all(0 <= s <= 1 for _, s in store.similarity_search_with_relevance_scores("one"))
        assert len(store.max_marginal_relevance_search("one", k=2)) == 2


def test_a_threshold_cuts(store):
    scores = [s for _, s in store.similarity_search_with_relevance_scores(about("violin"), k=8)]
    threshold = (scores[2] + scores[3]) / 2
    assert len(store.similarity_search_with_relevance_scores(about("violin"), k=8, score_threshold=threshold)) == 3
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"k": 8, "score_threshold": threshold}
    )
    found = retriever.invoke(about("violin"))
    assert [d.metadata["relevance_score"] for d in found] == pytest.approx(scores[:3])
    assert len(retriever.invoke(about("violin"), score_threshold=1.1)) == 0


@pytest.mark.parametrize("search_type", ["similarity", "mmr", "similarity_score_threshold"])
def test_filters_apply_before_the_best_are_taken(store, search_type):
    # The best three for this question are filtered out, so filtering after the top-k would find nothing.
    best = {d.metadata["number"] for d in store.similarity_search(about("violin"), k=3)}
    others = set(range(len(TOPICS))) - best
    for where in ({"number": {"$nin": list(best)}}, lambda metadata: metadata["number"] not in best):
        options = {"k": 3, "fetch_k": 3, "filter": where, "score_threshold": 0.0}
        if search_type != "similarity_score_threshold":
            del options["score_threshold"]
        found = store.as_retriever(search_type=search_type, search_kwargs=options).invoke(about("violin"))
        assert len(found) == 3 and {d.metadata["number"] for d in found} <= others
        assert store.search(about("violin"), search_type, **options) != []


def test_search_arguments_that_are_not_known_are_refused(store):
    for search in (store.similarity_search, store.similarity_search_with_score, store.max_marginal_relevance_search):
        for name in ("namespace", "where", "pre_filter", "expr"):
            with pytest.raises(InvalidQueryError, match=name):
                search("violin", **{name: "x"})
    for k in (0, -1, -3):
        with pytest.raises(InvalidQueryError, match="k must"):
            store.similarity_search("violin", k)
    for wrong in ({"k": 0}, {"k": -3}, {"lambda_mult": 2}, {"filter": {"number": {"$near": 1}}}, {"k": "2"}):
        with pytest.raises((InvalidQueryError, TypeError)):
            store.max_marginal_relevance_search("violin", **wrong)
    with pytest.raises(InvalidQueryError):
        store.similarity_search(" ")
    with pytest.raises(ValueError, match="search_type"):
        store.as_retriever(search_type="bm25")


def test_mmr_diversifies(memory):
    near = [f"glacier glacier glacier, number {n}" for n in range(4)]
    far = [about("saffron"), about("compiler")]
    store = MSAVectorStore.from_texts([*near, *far], memory=memory, ids=["n0", "n1", "n2", "n3", "f0", "f1"])
    question = "glacier glacier"
    plain = ids(store.similarity_search(question, k=3))
    assert set(plain) < {"n0", "n1", "n2", "n3"}
    assert ids(store.max_marginal_relevance_search(question, k=3, lambda_mult=1.0)) == plain
    spread = ids(store.max_marginal_relevance_search(question, k=3, lambda_mult=0.3))
    assert spread[0] == plain[0] and {"f0", "f1"} & set(spread)
    assert alikeness(store, spread) < alikeness(store, plain)
    assert set(ids(store.max_marginal_relevance_search(question, k=3, fetch_k=3, lambda_mult=0.3))) == set(plain)
    assert len(store.max_marginal_relevance_search(question, k=50)) == 6
    store.delete(delete_all=True)
    assert store.max_marginal_relevance_search(question) == []


def alikeness(store, names):
    keys = np.stack(list(store.memory.routing_keys(names).values()))
    cosines = keys @ keys.T
    return (cosines.sum() - len(names)) / (len(names) * (len(names) - 1))


def test_mmr_by_definition(store):
    """The same choice as LangChain's own function makes over vectors, given its inputs."""
    hits = store.memory.retrieve(about("violin"), 8)
    keys = store.memory.routing_keys([h.id for h in hits])
    relevance = store._select_relevance_score_fn()
    chosen, left = [], list(hits)
    while left:
        best = max(
            left,
            key=lambda h: (
                0.4 * (2 * relevance(h.score) - 1)
                - (0.6 * max(float(keys[h.id] @ keys[c]) for c in chosen) if chosen else 0.0)
            ),
        )
        chosen.append(best.id)
        left.remove(best)
    assert ids(store.max_marginal_relevance_search(about("violin"), k=8, lambda_mult=0.4)) == chosen


@pytest.mark.parametrize("search_type", ["similarity", "mmr", "similarity_score_threshold"])
def test_retrievers_keep_scores(store, search_type):
    options = {"k": 3, **({"score_threshold": 0.0} if "threshold" in search_type else {})}
    retriever = store.as_retriever(search_type=search_type, search_kwargs=options)
    assert isinstance(retriever, VectorStoreRetriever) and retriever.tags == ["MSAVectorStore"]
    expected = {h.id: h.score for h in store.memory.retrieve("violin", 8)}
    for document in retriever.invoke("violin"):
        assert type(document.metadata["score"]) is float
        assert document.metadata["score"] == pytest.approx(expected[document.id])
        json.dumps(document.metadata)
        assert "score" not in store.get_by_ids([document.id])[0].metadata
    bare = store.as_retriever(search_type=search_type, search_kwargs=options, score_key=None)
    assert (
        all(d == store.get_by_ids([d.id])[0] for d in bare.invoke("violin", k=2))
        and len(bare.invoke("violin", k=2)) == 2
    )
