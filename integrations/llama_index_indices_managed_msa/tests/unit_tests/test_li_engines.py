"""Retrievers and query engines: LlamaIndex's own pipelines over an `MSAIndex`."""

from __future__ import annotations

import logging

import pytest
from llama_index.core import PromptTemplate, Settings, StorageContext
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.postprocessor import (
    LongContextReorder,
    MetadataReplacementPostProcessor,
    PrevNextNodePostprocessor,
    SimilarityPostprocessor,
)
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RetrieverQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from facade import about, topics
from llama_index.indices.managed.msa import MSAIndex, MSARetriever, MSASynthesizer
from llama_index.llms.msa import MSALLM
from msa_plugin.errors import ConfigError, InvalidQueryError

DRAWN = {"temperature": 1.5, "seed": 3, "max_new_tokens": 12}


def ids(response):
    return [n.node_id for n in response.source_nodes]


# -- retrieval


def test_the_retriever_gives_the_memorys_ranking_and_scores(index, memory):
    nodes = MSARetriever(index, similarity_top_k=3).retrieve("violin and glacier")
    hits = memory.retrieve("violin and glacier", 3)
    assert [(n.node_id, n.score) for n in nodes] == [(h.id, pytest.approx(h.score)) for h in hits]
    assert all(type(n.score) is float for n in nodes)
    assert len(index.as_retriever().retrieve("violin")) == 4


async def test_retrieval_is_the_same_awaited(index):
    retriever = index.as_retriever()
    assert await retriever.aretrieve("violin") == retriever.retrieve("violin")


def test_a_query_with_several_strings_is_routed_for_each(index):
    one, other = about("violin"), about("saffron")
    bundle = QueryBundle("what?", custom_embedding_strs=[one, other])
    nodes = index.as_retriever(similarity_top_k=2).retrieve(bundle)
    assert {n.node_id for n in nodes} == {"violin::0", "saffron::0"}
    assert nodes[0].score >= nodes[1].score


def test_bad_queries_are_refused(index):
    with pytest.raises(InvalidQueryError):
        index.as_retriever().retrieve("")
    for k in (0, -1, -3):
        with pytest.raises(InvalidQueryError, match="k must"):
            index.as_retriever(similarity_top_k=k).retrieve("violin")
    with pytest.raises(ConfigError, match="doc_ids"):
        index.as_retriever(node_ids=["violin::0"])
    with pytest.raises(ConfigError, match="vector stores"):
        index.as_retriever(vector_store_query_mode="mmr")


def test_an_empty_index_finds_nothing_and_says_so(memory):
    index = MSAIndex(memory=memory)
    assert index.as_retriever().retrieve("violin") == []
    assert str(index.as_query_engine().query("violin")) == "Empty Response"
    assert str(index.as_query_engine(streaming=True).query("violin")) == "Empty Response"


def test_callbacks_see_retrieval_synthesis_and_prompts(memory, documents):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    index = MSAIndex.from_documents(documents, memory=memory, callback_manager=CallbackManager([debug]))
    index.as_query_engine().query("violin")
    for event in (CBEventType.QUERY, CBEventType.RETRIEVE, CBEventType.SYNTHESIZE):
        assert len(debug.get_event_pairs(event)) == 1, event
    MSALLM(memory, callback_manager=index.callback_manager).complete("hello")
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1


# -- the memory's own reading. Pitfall: without llm= an index asks Settings for OpenAI


def test_a_query_engine_reads_the_nodes_by_id(index, memory):
    response = index.as_query_engine(similarity_top_k=2, **DRAWN).query("violin")
    assert isinstance(response, Response)
    chosen = [h.id for h in memory.retrieve("violin", 2)]
    assert ids(response) == chosen
    assert response.response == memory.ask("violin", documents=chosen, **DRAWN).text
    assert response.metadata[chosen[0]] == response.source_nodes[0].metadata


async def test_sync_async_and_streams_say_the_same(index):
    engine, streaming = index.as_query_engine(**DRAWN), index.as_query_engine(streaming=True, **DRAWN)
    expected = engine.query("violin")
    assert (await engine.aquery("violin")).response == expected.response
    stream = streaming.query("violin")
    assert isinstance(stream, StreamingResponse)
    pieces = list(stream.response_gen)
    assert len(pieces) > 1 and "".join(pieces) == expected.response
    assert ids(stream) == ids(expected)


# -- pitfall: an asynchronous stream has a type of its own


async def test_an_async_stream_is_an_async_streaming_response(index):
    engine = index.as_query_engine(streaming=True, **DRAWN)
    stream = await engine.aquery("violin")
    assert isinstance(stream, AsyncStreamingResponse)
    pieces = [piece async for piece in stream.async_response_gen()]
    assert "".join(pieces) == index.as_query_engine(**DRAWN).query("violin").response
    assert len(ids(stream)) == 4
    assert (await (await engine.aquery("violin")).get_response()).response == "".join(pieces)


async def test_leaving_a_stream_ends_the_decoding(index, monkeypatch):
    from facade import count_runs

    runs = count_runs(monkeypatch)
    engine = index.as_query_engine(streaming=True, max_new_tokens=300)
    stream = engine.query("violin").response_gen
    next(stream)
    stream.close()
    pieces = (await engine.aquery("violin")).response_gen
    await anext(pieces)
    await pieces.aclose()
    assert len(runs) < 100


# -- another language model reads text


async def test_another_llm_gets_the_text(index, other_llm):
    response = index.as_query_engine(llm=other_llm, similarity_top_k=1).query(about("violin"))
    assert str(response) == "said the other model" and ids(response) == ["violin::0"]
    assert about("violin") in other_llm.prompts[0] and "number: 3" in other_llm.prompts[0]
    stream = index.as_query_engine(llm=other_llm, streaming=True).query("violin")
    assert "".join(stream.response_gen) == "said the other model"


def test_prompts_and_modes_of_text_rag_are_honoured(index, other_llm, monkeypatch, memory):
    seen = []
    chat = type(memory).chat
    monkeypatch.setattr(type(memory), "chat", lambda self, m, **o: seen.append(m) or chat(self, m, **o))
    template = PromptTemplate("CONTEXT {context_str} ASKED {query_str}")
    index.as_query_engine(text_qa_template=template, similarity_top_k=1).query(about("violin"))
    assert "CONTEXT number: 3" in seen[0][-1]["content"]
    index.as_query_engine(response_mode="tree_summarize", llm=other_llm).query("violin")
    assert len(other_llm.prompts) == 1
    with pytest.raises(ConfigError, match="max_new_tokens"):
        index.as_query_engine(llm=other_llm, max_new_tokens=3)


def test_the_memorys_own_llm_means_reading_by_id(index, memory):
    engine = index.as_query_engine(llm=MSALLM(memory, max_tokens=2, stop=["x"]))
    assert isinstance(engine._response_synthesizer, MSASynthesizer)
    with pytest.raises(ConfigError, match="route on a prompt"):
        index.as_query_engine(llm=MSALLM(memory, mode="memory"), response_mode="refine")
    with pytest.raises(ConfigError, match="no prompts"):
        engine.update_prompts({"response_synthesizer:text_qa_template": PromptTemplate("{query_str}")})


def test_settings_can_name_it_as_the_default(index, memory, monkeypatch):
    monkeypatch.setattr(type(Settings), "llm", property(lambda self: MSALLM(memory, max_tokens=2)))
    assert RetrieverQueryEngine.from_args(index.as_retriever()).query("violin").response is not None


# -- the synthesizer


def test_postprocessors_decide_what_is_read(index, memory):
    best = memory.retrieve(about("violin"), 8)
    cut = SimilarityPostprocessor(similarity_cutoff=(best[0].score + best[1].score) / 2)
    engine = index.as_query_engine(similarity_top_k=8, node_postprocessors=[cut], **DRAWN)
    response = engine.query(about("violin"))
    assert ids(response) == ["violin::0"]
    assert response.response == memory.ask(about("violin"), documents=["violin::0"], **DRAWN).text
    reordered = index.as_query_engine(node_postprocessors=[LongContextReorder()], max_new_tokens=1).query("violin")
    assert sorted(ids(reordered)) == sorted(h.id for h in memory.retrieve("violin", 4))


def test_neighbours_come_from_the_document_store(memory):
    from llama_index.core import Document
    from llama_index.core.node_parser import TokenTextSplitter

    text = " ".join(about(t["id"]) for t in topics())
    splitter = TokenTextSplitter(chunk_size=32, chunk_overlap=0)
    index = MSAIndex.from_documents([Document(text=text, id_="d")], memory=memory, transformations=[splitter])
    neighbours = PrevNextNodePostprocessor(docstore=index.docstore, num_nodes=1, mode="both")
    engine = index.as_query_engine(similarity_top_k=1, node_postprocessors=[neighbours], max_new_tokens=1)
    assert len(ids(engine.query(about("violin")))) > 1


@pytest.mark.parametrize("streaming", [False, True])
async def test_text_that_memory_does_not_hold_is_read_as_text(index, memory, caplog, streaming):
    changed = TextNode(id_="violin::0", text="an altered text")
    foreign = TextNode(id_="elsewhere", text="from elsewhere")
    seen = []
    chat, stream_chat = type(memory).chat, type(memory).stream_chat
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(type(memory), "chat", lambda s, m, **o: seen.append(m) or chat(s, m, **o))
        patch.setattr(type(memory), "stream_chat", lambda s, m, **o: seen.append(m) or stream_chat(s, m, **o))
        synthesizer = MSASynthesizer(memory, streaming=streaming, max_new_tokens=2)
        for node in (changed, foreign):
            str(synthesizer.synthesize("what?", [NodeWithScore(node=node, score=1.0)]))
            response = await synthesizer.asynthesize("what?", [NodeWithScore(node=node)])
            await response.get_response() if streaming else str(response)
    read = ["altered" in m[-1]["content"] for m in seen], ["elsewhere" in m[-1]["content"] for m in seen]
    assert read == ([True, True, False, False], [False, False, True, True])
    assert "1 of 1 nodes" in caplog.text


def test_a_replaced_text_is_not_passed_over(memory, documents, monkeypatch):
    seen, chat = [], type(memory).chat
    monkeypatch.setattr(type(memory), "chat", lambda self, m, **o: seen.append(m) or chat(self, m, **o))
    for document in documents:
        document.metadata["window"] = f"the window around {document.id_}"
    index = MSAIndex.from_documents(documents, memory=memory)
    replace = MetadataReplacementPostProcessor(target_metadata_key="window")
    engine = index.as_query_engine(similarity_top_k=1, node_postprocessors=[replace], max_new_tokens=1)
    response = engine.query(about("violin"))
    assert response.source_nodes[0].node.get_content() == "the window around violin"
    assert "the window around violin" in seen[0][-1]["content"] and about("violin") not in seen[0][0]["content"]


# -- LlamaIndex's pipelines


def test_citations(index, memory, other_llm):
    engine = CitationQueryEngine.from_args(index, llm=other_llm, citation_chunk_size=64, similarity_top_k=2)
    response = engine.query(about("violin"))
    assert "Source 1:" in other_llm.prompts[0] and about("violin") in other_llm.prompts[0]
    assert "Source 1:" in response.source_nodes[0].node.get_content()
    own = CitationQueryEngine.from_args(index, llm=MSALLM(memory, max_tokens=2), similarity_top_k=1)
    assert len(own.query("violin").source_nodes) == 1


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"])
def test_fusion(index, other_llm, mode):
    other_llm.reply = f"{about('saffron')}\n{about('meteor')}"
    fusion = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=2), index.as_retriever(similarity_top_k=3)],
        llm=other_llm, num_queries=3, similarity_top_k=8, mode=mode,
    )  # fmt: skip
    nodes = fusion.retrieve(about("violin"))
    assert {"violin::0", "saffron::0", "meteor::0"} <= {n.node_id for n in nodes}
    engine = RetrieverQueryEngine(fusion, MSASynthesizer(index.memory, max_new_tokens=1))
    assert len(engine.query(about("violin")).source_nodes) == len(nodes)


async def test_the_evaluator_compares_node_ids(index):
    evaluator = RetrieverEvaluator.from_metric_names(
        ["hit_rate", "mrr", "precision", "recall", "ap", "ndcg"], retriever=index.as_retriever(similarity_top_k=1)
    )
    right = evaluator.evaluate(about("violin"), expected_ids=["violin::0"])
    assert set(right.metric_vals_dict.values()) == {1.0}
    wrong = await evaluator.aevaluate(about("violin"), expected_ids=["violin"])  # the document's id is not the node's
    assert set(wrong.metric_vals_dict.values()) == {0.0}


def test_hypothetical_documents(index, other_llm):
    other_llm.reply = about("saffron")
    engine = TransformQueryEngine(
        index.as_query_engine(similarity_top_k=1, max_new_tokens=1),
        HyDEQueryTransform(llm=other_llm, include_original=False),
    )
    assert ids(engine.query("which spice?")) == ["saffron::0"]


def test_it_is_a_tool_for_other_engines(index, memory, other_llm):
    from llama_index.core.question_gen import LLMQuestionGenerator
    from llama_index.core.tools import QueryEngineTool

    tool = QueryEngineTool.from_defaults(index.as_query_engine(max_new_tokens=2), name="topics", description="topics")
    assert tool.call("violin").raw_output.source_nodes
    other_llm.reply = '{"items": [{"sub_question": "violin?", "tool_name": "topics"}]}'
    engine = SubQuestionQueryEngine.from_defaults(
        [tool],
        llm=other_llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=other_llm),
        response_synthesizer=MSASynthesizer(memory, max_new_tokens=2),
        verbose=False,
        use_async=False,
    )
    assert engine.query("what about the violin?").source_nodes


def test_chat_engines(index, memory, other_llm):
    chat = index.as_chat_engine(max_new_tokens=4)
    assert type(chat).__name__ == "CondenseQuestionChatEngine"
    first = chat.chat("violin")
    assert first.source_nodes and len(chat.chat_history) == 2
    chat.chat("and glaciers?")
    assert len(chat.chat_history) == 4
    assert "".join(chat.stream_chat("and glaciers?").response_gen) is not None
    context = index.as_chat_engine(ChatMode.CONTEXT, llm=other_llm)
    assert context.chat(about("violin")).response == "said the other model"
    assert about("violin") in other_llm.prompts[-1]
    assert index.as_chat_engine(ChatMode.SIMPLE).chat("hello").response is not None


def test_a_shared_storage_context_is_not_taken_over(memory, documents):
    context = StorageContext.from_defaults()
    store = context.docstore
    index = MSAIndex.from_documents(documents, memory=memory, storage_context=context)
    assert context.docstore is store and index.docstore is not store
