"""`langchain_core.indexing.index()` over the store: every kind of clean-up, own ids, and no needless encoding."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index

from facade import about, count_runs
from langchain_msa import MSAVectorStore

PAGES = (("a", "violin"), ("a", "glacier"), ("b", "saffron"))


def pages(*named):
    return [Document(about(topic), metadata={"source": source, "topic": topic}) for source, topic in named]


@pytest.fixture
def empty(memory):
    return MSAVectorStore(memory)


@pytest.fixture
def records():
    manager = InMemoryRecordManager(namespace="test")
    manager.create_schema()
    return manager


def run(store, records, documents, cleanup, **options):
    options = {"source_id_key": "source", "key_encoder": "blake2b", **options}
    result = index(documents, records, store, cleanup=cleanup, **options)
    return tuple(result[f"num_{what}"] for what in ("added", "updated", "skipped", "deleted"))


def held(store):
    return sorted(d.metadata["topic"] for d in store.memory.get(list(store.memory.ids())))


@pytest.mark.parametrize(
    ("cleanup", "left"),
    [
        (None, ["glacier", "meteor", "saffron", "violin"]),
        ("incremental", ["meteor", "saffron", "violin"]),
        ("scoped_full", ["meteor", "saffron", "violin"]),
        ("full", ["meteor", "violin"]),
    ],
)
def test_clean_up(empty, records, cleanup, left):
    assert run(empty, records, pages(*PAGES), cleanup) == (3, 0, 0, 0)
    assert run(empty, records, pages(*PAGES), cleanup) == (0, 0, 3, 0)
    changed = pages(("a", "violin"), ("a", "meteor"))  # source b is not seen, and glacier left source a
    assert run(empty, records, changed, cleanup) == (1, 0, 1, 4 - len(left))
    assert held(empty) == left
    found = empty.similarity_search(about("glacier"), k=9)
    assert ("glacier" in [d.metadata["topic"] for d in found]) is ("glacier" in left)


def test_small_batches_and_forced_updates(empty, records, monkeypatch):
    assert run(empty, records, pages(*PAGES), "full", batch_size=1) == (3, 0, 0, 0)
    runs = count_runs(monkeypatch)
    assert run(empty, records, pages(*PAGES), "full", force_update=True) == (0, 3, 0, 0)
    assert runs == []  # the same content is not encoded again


async def test_async(empty, records):
    options = {"source_id_key": "source", "key_encoder": "sha256", "cleanup": "full"}
    await aindex(pages(*PAGES), records, empty, **options)
    result = await aindex(pages(("b", "saffron")), records, empty, **options)
    assert result["num_deleted"] == 2 and held(empty) == ["saffron"]


def test_own_ids(empty, records):
    run(empty, records, pages(*PAGES), "full", key_encoder=lambda document: document.metadata["topic"])
    assert sorted(empty.memory.ids()) == ["glacier", "saffron", "violin"]
    assert empty.as_retriever().invoke(about("violin"))[0].id == "violin"


def test_arguments_for_adding_arrive(empty, records):
    documents = [*pages(*PAGES), Document(" ", metadata={"source": "c"})]
    assert run(empty, records, documents, None, upsert_kwargs={"on_invalid": "skip"})[0] == 4
    assert held(empty) == ["glacier", "saffron", "violin"]
