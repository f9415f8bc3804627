"""Finding an index again, and the trap that LlamaIndex's own loader is."""

from __future__ import annotations

import json
import shutil

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.storage.docstore import SimpleDocumentStore

from facade import TOPICS
from llama_index.indices.managed.msa import MSAIndex
from msa_plugin.errors import BankFormatError, BankNotFoundError, ConfigError, FingerprintMismatchError


@pytest.fixture
def model(backbone, adapter):
    return {"model": backbone, "adapter": adapter}


def test_persist_and_back(tmp_path, documents, model):
    settings = {"namespace": "ours", "instruction": "Be brief.", "generation": {"max_new_tokens": 3}}
    with MSAIndex.from_documents(documents, path=tmp_path / "bank", **model, **settings) as index:
        index.persist(tmp_path / "storage")
        expected = index.as_query_engine().query("violin").response
        index.delete_ref_doc("meteor")  # after persist(): the bank is the truth, not the file
    with MSAIndex.from_persist_dir(tmp_path / "storage", **model) as back:
        assert back.index_id == index.index_id
        assert back.memory.namespace == "ours" and back.memory.config == index.memory.config
        assert set(back.ref_doc_info) == set(TOPICS) - {"meteor"}
        assert back.refresh_ref_docs(documents) == [t == "meteor" for t in TOPICS]
        assert back.as_query_engine().query("violin").response == expected


def test_both_folders_can_be_moved_together(tmp_path, documents, model):
    with MSAIndex.from_documents(documents, path=tmp_path / "a" / "bank", **model) as index:
        index.persist(tmp_path / "a" / "bank")
        index.persist(tmp_path / "a" / "storage")
    shutil.move(tmp_path / "a", tmp_path / "b")
    for folder in ("bank", "storage"):
        with MSAIndex.from_persist_dir(tmp_path / "b" / folder, **model) as back:
            assert len(back.ref_doc_info) == 8


def test_an_open_memory_can_be_used(index, memory, tmp_path, backbone):
    index.persist(tmp_path / "storage")
    assert MSAIndex.from_persist_dir(tmp_path / "storage", memory=memory).memory is memory
    other = type(memory).open(tmp_path / "bank", model=backbone, adapter=memory.engine.adapter, namespace="other")
    with other, pytest.raises(ConfigError, match="namespace"):
        MSAIndex.from_persist_dir(tmp_path / "storage", memory=other)
    with pytest.raises(ConfigError, match="namespace"):
        MSAIndex.from_persist_dir(tmp_path / "storage", namespace="other")


def test_another_model_is_refused(index, tmp_path, model):
    index.persist(tmp_path / "storage")
    with pytest.raises(FingerprintMismatchError):
        MSAIndex.from_persist_dir(tmp_path / "storage", **model, window=64)


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 1}', '{"format": 2}', None])
def test_a_missing_or_damaged_file_is_named(index, tmp_path, damage):
    index.persist(tmp_path / "storage")
    file = tmp_path / "storage" / "msa_index.json"
    assert json.loads(file.read_text())["format"] == 1
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    with pytest.raises(BankNotFoundError if damage is None else BankFormatError, match=r"msa_index\.json"):
        MSAIndex.from_persist_dir(tmp_path / "storage")


# -- pitfall: load_index_from_storage() makes a VectorStoreIndex of every IndexDict


@pytest.mark.parametrize("docstore", [None, "own"])
def test_llamaindexs_loader_gives_an_msa_index(memory, documents, tmp_path, docstore):
    context = None
    if docstore:
        store = SimpleDocumentStore()
        store.add_documents([Document(text="x", id_="x")])
        context = StorageContext.from_defaults(docstore=store)
    index = MSAIndex.from_documents(documents, memory=memory, storage_context=context)
    index.storage_context.persist(persist_dir=str(tmp_path / "storage"))
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"))
    loaded = load_index_from_storage(context, memory=memory, embed_model=MockEmbedding(embed_dim=3))
    assert type(loaded) is MSAIndex and loaded.index_id == index.index_id
    assert loaded.refresh_ref_docs(documents) == [False] * 8
    with pytest.raises(ConfigError, match="memory="):
        load_index_from_storage(context, embed_model=MockEmbedding(embed_dim=3))


def test_vector_store_indices_still_load_as_such(documents, tmp_path):
    index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=3))
    index.storage_context.persist(persist_dir=str(tmp_path))
    context = StorageContext.from_defaults(persist_dir=str(tmp_path))
    assert type(load_index_from_storage(context, embed_model=MockEmbedding(embed_dim=3))) is VectorStoreIndex
