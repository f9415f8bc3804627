"""`MSAIndex`: what LlamaIndex expects of an index, and the traps on the way there."""

from __future__ import annotations

import logging

import pytest
from llama_index.core import Document, SimpleDirectoryReader, StorageContext
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import HierarchicalNodeParser, SentenceSplitter, get_leaf_nodes
from llama_index.core.retrievers import AutoMergingRetriever
from llama_index.core.schema import IndexNode, NodeRelationship, NodeWithScore, TextNode, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore

from facade import TOPICS, about, count_runs, opened
from llama_index.indices.managed.msa import MSAIndex, WholeDocument
from msa_plugin.errors import (
    BankReadOnlyError,
    ConfigError,
    DuplicateDocumentError,
    InvalidDocumentError,
)

LONG = " ".join(f"Sentence {n} about beekeeping ends here." for n in range(400))


def found(index, question, k=8, **kwargs):
    return [n.node_id for n in index.as_retriever(similarity_top_k=k, **kwargs).retrieve(question)]


def test_documents_come_back_as_they_went_in(index, documents):
    nodes = {n.node_id: n.node for n in index.as_retriever(similarity_top_k=8).retrieve("violin")}
    assert set(nodes) == {f"{t}::0" for t in TOPICS}
    violin = nodes["violin::0"]
    assert violin.text == about("violin") and violin.ref_doc_id == "violin"
    assert violin.metadata == {"number": 3, "even": False, "tags": ["vio", "all"]}
    assert index.docstore.get_node("violin::0") == violin


def test_everything_a_node_has_survives(memory):
    node = TextNode(
        id_="n",
        text="the violin",
        metadata={"a": 1, "b": None},
        excluded_llm_metadata_keys=["a"],
        excluded_embed_metadata_keys=["b"],
        metadata_template="{key}={value}",
        text_template="{content} ({metadata_str})",
        start_char_idx=3,
        end_char_idx=9,
        relationships={
            NodeRelationship.SOURCE: Document(text="x", id_="d").as_related_node_info(),
            NodeRelationship.NEXT: TextNode(text="y", id_="m").as_related_node_info(),
        },
    )
    index = MSAIndex([node], memory=memory)
    [back] = index.as_retriever().retrieve("violin")
    assert back.node == node and back.node.hash == node.hash


def test_documents_added_without_llamaindex_are_nodes_too(memory):
    memory.add({"id": "plain", "text": about("comet"), "title": "Comets", "metadata": {"a": 1}})
    index = MSAIndex(memory=memory)
    [hit] = index.as_retriever().retrieve("comet")
    assert (hit.node_id, hit.node.text) == ("plain", about("comet"))
    assert hit.node.metadata == {"a": 1, "title": "Comets"}
    assert index.ref_doc_info == {}
    index.delete_nodes(["plain"])
    assert found(index, "comet") == []


def test_a_title_in_the_metadata_is_encoded(memory):
    MSAIndex.from_documents([Document(text="x y", id_="d", metadata={"title": "Comets"})], memory=memory)
    assert memory.get("d::0")[0].title == "Comets"


# -- pitfall: transformations=[] is falsy, and a sentence splitter takes its place


@pytest.mark.parametrize("transformations", [None, []])
def test_documents_are_encoded_whole(memory, transformations):
    index = MSAIndex.from_documents([Document(text=LONG, id_="long")], memory=memory, transformations=transformations)
    assert found(index, "beekeeping") == ["long::0"]
    assert index.docstore.get_node("long::0").text == LONG
    index.insert(Document(text=LONG + " More.", id_="longer"))
    assert set(memory.ids()) == {"long::0", "longer::0"}


def test_a_splitter_is_used_when_given(memory):
    splitter = SentenceSplitter(chunk_size=128, chunk_overlap=0)
    index = MSAIndex.from_documents([Document(text=LONG, id_="long")], memory=memory, transformations=[splitter])
    ids = index.ref_doc_info["long"].node_ids
    assert len(ids) > 5 and set(ids) == set(memory.ids())
    index.update_ref_doc(Document(text="short", id_="long"))
    assert len(index.ref_doc_info["long"].node_ids) == 1 == len(list(memory.ids()))


# -- pitfall: bare documents as nodes, and ids that change from run to run


def test_refresh_inserts_new_and_replaces_changed_documents(index, documents):
    batch = [documents[0], Document(text="a new text", id_="violin"), Document(text="another", id_="extra")]
    assert index.refresh_ref_docs(batch) == [False, True, True]
    assert index.refresh_ref_docs(batch) == [False, False, False]
    assert index.docstore.get_node("violin::0").text == "a new text"
    assert len(index.ref_doc_info) == 9


def test_refresh_notices_changed_metadata(index, documents):
    documents[0].metadata["number"] = 100
    assert index.refresh_ref_docs(documents[:2]) == [True, False]
    assert index.docstore.get_node("lighthouse::0").metadata["number"] == 100


def test_node_ids_are_stable_and_not_the_documents(index):
    [node] = WholeDocument()([Document(text="x", id_="d1")])
    assert node.node_id == "d1::0" == WholeDocument()([Document(text="x", id_="d1")])[0].node_id
    assert node.ref_doc_id == "d1"
    assert index.ref_doc_info["violin"].node_ids == ["violin::0"]
    assert index.ref_doc_info["violin"].metadata["number"] == 3


@pytest.mark.parametrize("way", ["nodes", "insert_nodes", "transformation"])
def test_bare_documents_are_found_by_their_id(memory, way):
    class Upper(TransformComponent):
        def __call__(self, nodes, **kwargs):
            for node in nodes:
                node.set_content(node.get_content().upper())
            return nodes

    document = Document(text="bare", id_="bare")
    if way == "transformation":
        index = MSAIndex.from_documents([document], memory=memory, transformations=[Upper()])
        assert index.docstore.get_node("bare::0").text == "BARE"
    elif way == "nodes":
        index = MSAIndex([document], memory=memory)
    else:
        index = MSAIndex(memory=memory)
        index.insert_nodes([document])
    assert index.refresh_ref_docs([Document(text="bare", id_="bare")]) == [False]
    index.delete_ref_doc("bare")
    assert list(memory.ids()) == []


# -- pitfall: IngestionPipeline(vector_store=...) drops nodes that have no embedding


@pytest.mark.parametrize("steps", [[WholeDocument()], [SentenceSplitter(chunk_size=64, chunk_overlap=0)]])
def test_a_pipelines_nodes_are_inserted(memory, documents, steps):
    index = MSAIndex(memory=memory)
    nodes = IngestionPipeline(transformations=steps).run(documents=documents)
    index.insert_nodes(nodes)
    assert set(memory.ids()) == {n.node_id for n in nodes}
    assert set(index.ref_doc_info) == set(TOPICS)
    assert index.refresh_ref_docs(documents) == [False] * 8


# -- inserting, updating, deleting


def test_from_documents_twice_costs_nothing_and_keeps_the_rest(memory, documents, monkeypatch):
    MSAIndex.from_documents(documents, memory=memory)
    runs = count_runs(monkeypatch)
    index = MSAIndex.from_documents(documents[:2], memory=memory)
    assert runs == [] and len(index.ref_doc_info) == 8


def test_a_failing_update_keeps_the_old_document(index):
    for change in (index.update_ref_doc, index.insert):
        with pytest.raises(InvalidDocumentError):
            change(Document(text=" ", id_="violin"))
    with pytest.raises(InvalidDocumentError):
        index.refresh_ref_docs([Document(text="new", id_="meteor"), Document(text=" ", id_="violin")])
    assert index.docstore.get_node("violin::0").text == about("violin")
    assert index.docstore.get_node("meteor::0").text == about("meteor")


def test_empty_pages_are_skipped_on_demand_and_said(memory, caplog):
    pages = [Document(text=" ", id_="empty"), Document(text="full", id_="full")]
    with pytest.raises(InvalidDocumentError, match="empty::0"):
        MSAIndex.from_documents(pages, memory=memory)
    with caplog.at_level(logging.WARNING):
        index = MSAIndex.from_documents(pages, memory=memory, on_invalid="skip")
    assert "empty::0" in caplog.text
    assert set(index.ref_doc_info) == {"full"}
    index.update_ref_doc(Document(text="", id_="full"))
    assert index.docstore.get_node("full::0").text == "full"


def test_one_id_for_two_documents_is_an_error(memory):
    with pytest.raises(DuplicateDocumentError):
        MSAIndex.from_documents([Document(text="a", id_="d"), Document(text="b", id_="d")], memory=memory)


def test_reserved_metadata_is_refused(memory):
    with pytest.raises(InvalidDocumentError, match="reserved"):
        MSAIndex.from_documents([Document(text="a", metadata={"_llama_index": 1})], memory=memory)


def test_deleted_is_gone_for_the_next_question_and_after_reopening(tmp_path, backbone, adapter, documents):
    settings = {"path": tmp_path / "b", "model": backbone, "adapter": adapter}
    with MSAIndex.from_documents(documents, **settings) as index:
        index.delete_ref_doc("violin")
        assert "violin::0" not in found(index, "violin")
        index.delete_nodes(["meteor::0", "nobody"])
        assert set(found(index, "meteor")) == {f"{t}::0" for t in TOPICS if t not in ("violin", "meteor")}
    with MSAIndex(**settings) as index:
        assert set(index.ref_doc_info) == set(TOPICS) - {"violin", "meteor"}
        assert "violin::0" not in found(index, "violin")
        assert index.refresh_ref_docs(documents[:4]) == [False, False, False, True]


def test_deleting_what_is_not_there_says_so(index, caplog):
    with caplog.at_level(logging.WARNING):
        index.delete_ref_doc("nobody")
    assert "nobody not found" in caplog.text
    assert len(index.ref_doc_info) == 8


def test_the_document_store_follows_the_memory(index, memory, documents, tmp_path, backbone, adapter):
    assert index.ref_doc_info
    memory.delete("violin::0")
    assert "violin" not in index.ref_doc_info
    assert index.refresh_ref_docs(documents) == [t == "violin" for t in TOPICS]
    with opened(tmp_path, backbone, adapter) as second:  # somebody else, who writes to the same bank
        MSAIndex.from_documents([Document(text="from elsewhere", id_="far")], memory=second)
    assert "far" in index.ref_doc_info
    index.delete_ref_doc("far")
    assert "far::0" not in set(memory.ids())


def test_the_document_store_is_changed_through_the_index(index):
    with pytest.raises(BankReadOnlyError, match="insert_nodes"):
        index.docstore.add_documents([TextNode(text="x")])
    with pytest.raises(BankReadOnlyError):
        index.docstore.delete_document("violin::0")
    assert index.docstore.document_exists("violin::0") and not index.docstore.document_exists("nobody")
    assert len(index.docstore.docs) == 8
    hashes = index.docstore.get_all_document_hashes()
    assert set(TOPICS) <= set(hashes.values()) and "violin::0" in hashes.values()


# -- storage contexts, objects, readers


def test_a_document_store_of_ones_own_is_kept_in_step(memory, documents):
    nodes = HierarchicalNodeParser.from_defaults(chunk_sizes=[256, 64]).get_nodes_from_documents(
        [Document(text=LONG[:2000], id_="long")]
    )
    store = SimpleDocumentStore()
    store.add_documents(nodes)
    context = StorageContext.from_defaults(docstore=store)
    leaves = get_leaf_nodes(nodes)
    index = MSAIndex(leaves, memory=memory, storage_context=context)
    assert index.docstore is store
    merged = AutoMergingRetriever(index.as_retriever(similarity_top_k=len(leaves)), context).retrieve("beekeeping")
    assert {n.node_id for n in merged} <= {n.node_id for n in nodes} - {n.node_id for n in leaves}
    index.insert(documents[0])
    assert store.document_exists("lighthouse::0")
    assert index.refresh_ref_docs(documents[:1]) == [False]
    index.delete_ref_doc("lighthouse", delete_from_docstore=True)
    assert not store.document_exists("lighthouse::0") and memory.get("lighthouse::0") == []


def test_index_nodes_lead_to_their_objects(memory, documents):
    target = NodeWithScore(node=TextNode(text="behind the door", id_="target"), score=0.5)
    objects = [IndexNode(text=about("door"), index_id="door", obj=target)]
    index = MSAIndex(WholeDocument()(documents), objects=objects, memory=memory)
    assert "target" in found(index, about("door"))
    inserted = IndexNode(text=about("window"), index_id="window", obj=index.as_retriever(doc_ids=["violin"]))
    retriever = index.as_retriever(similarity_top_k=1)
    index.insert_nodes([inserted])
    assert inserted.node_id in set(memory.ids())
    assert [n.node_id for n in retriever.retrieve(about("window"))] == ["violin::0"]


def test_files_are_read_by_llamaindex(memory, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(about("violin"), encoding="utf-8")
    documents = SimpleDirectoryReader(tmp_path / "notes", filename_as_id=True).load_data()
    index = MSAIndex.from_documents(documents, memory=memory)
    [hit] = index.as_retriever().retrieve("violin")
    assert hit.node.metadata["file_name"] == "a.txt"


def test_progress_is_silent_unless_asked_for(memory, documents):
    seen = []
    index = MSAIndex(memory=memory)
    index.insert_nodes(WholeDocument()(documents), on_progress=seen.append)
    assert seen[-1].documents == 8


def test_opening_costs_nothing_and_needs_no_right_to_write(index, tmp_path, backbone, adapter, monkeypatch):
    settings = {"path": tmp_path / "bank", "model": backbone, "adapter": adapter, "instruction": "Be brief."}
    with monkeypatch.context() as patch, MSAIndex(**settings, read_only=True) as reader:
        patch.setattr(type(reader.memory), "ids", lambda self: pytest.fail("it read the whole bank"))
        assert found(reader, about("violin"), k=1) == ["violin::0"]
        with pytest.raises(BankReadOnlyError):
            reader.insert(Document(text="x"))


def test_the_memory_is_one_thing_or_the_other(memory, tmp_path):
    with pytest.raises(ConfigError, match="either memory="):
        MSAIndex()
    with pytest.raises(ConfigError, match="either memory="):
        MSAIndex(memory=memory, path=tmp_path)
    with pytest.raises(ConfigError, match="namespace"):
        MSAIndex(memory=memory, namespace="other")


def test_an_index_closes_what_it_opened_and_nothing_else(index, memory, tmp_path, backbone, adapter):
    index.close()
    assert memory.stats().documents == 8
    own = MSAIndex(path=tmp_path / "own", model=backbone, adapter=adapter)
    own.close()
    with pytest.raises(ConfigError, match="closed"):
        own.memory.stats()


def test_an_embedding_model_is_ignored_and_said(memory, caplog):
    with caplog.at_level(logging.WARNING):
        MSAIndex(memory=memory, embed_model="local")
    assert "embed_model" in caplog.text
