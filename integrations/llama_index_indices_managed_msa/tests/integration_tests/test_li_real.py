"""The same flows on the default backbone and the sample corpus."""

from __future__ import annotations

import pytest
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index.indices.managed.msa import MSAIndex, MSAMemoryBlock
from llama_index.llms.msa import MSALLM
from msa_plugin import dates
from msa_plugin.conversations import day
from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.memory import LatentMemory

pytestmark = pytest.mark.slow
ONE_HOP = [q for q in sample_questions() if q.hops == 1]


@pytest.fixture(scope="module")
def index(tmp_path_factory, real_backbone):
    documents = [Document(id_=d.id, text=d.text, metadata={**d.metadata, "title": d.title}) for d in sample_documents()]
    with MSAIndex.from_documents(documents, path=tmp_path_factory.mktemp("real"), model=real_backbone) as index:
        yield index


def test_questions_find_their_documents(index):
    evaluator = RetrieverEvaluator.from_metric_names(["hit_rate", "mrr"], retriever=index.as_retriever())
    results = [evaluator.evaluate(q.question, [f"{i}::0" for i in q.positive_ids]) for q in ONE_HOP]
    assert all(r.metric_vals_dict["hit_rate"] == 1.0 for r in results)
    assert sum(r.metric_vals_dict["mrr"] for r in results) / len(results) > 0.7


def test_answers_are_those_of_the_memory(index):
    question = ONE_HOP[0]
    response = index.as_query_engine(similarity_top_k=2).query(question.question)
    ids = [n.node_id for n in response.source_nodes]
    assert response.response == index.memory.ask(question.question, documents=ids).text
    assert any(answer.lower() in response.response.lower() for answer in question.answers)


async def test_streaming_awaited(index):
    engine = index.as_query_engine(similarity_top_k=2, streaming=True)
    stream = await engine.aquery(ONE_HOP[0].question)
    pieces = [piece async for piece in stream.async_response_gen()]
    assert "".join(pieces) == str(engine.query(ONE_HOP[0].question))


def test_filters_and_updates(index):
    question = ONE_HOP[1].question
    best = index.as_retriever(similarity_top_k=1).retrieve(question)[0].node
    title = MetadataFilters(filters=[MetadataFilter(key="title", value=best.metadata["title"], operator="!=")])
    assert best.node_id not in {n.node_id for n in index.as_retriever(filters=title).retrieve(question)}
    index.insert(Document(id_="extra", text="The quokka's tax return is filed on the ninth of May."))
    tax = "When is the quokka's tax return filed?"
    assert index.as_retriever(similarity_top_k=1).retrieve(tax)[0].node_id == "extra::0"
    index.delete_ref_doc("extra")
    assert "extra::0" not in {n.node_id for n in index.as_retriever(similarity_top_k=100).retrieve(tax)}


def test_text_rag_with_its_own_backbone(index):
    engine = index.as_query_engine(llm=MSALLM(index.memory, max_tokens=24), response_mode="compact", similarity_top_k=1)
    assert engine.query(ONE_HOP[0].question).source_nodes


async def test_an_agents_memory(tmp_path, real_backbone):
    with LatentMemory.open(tmp_path / "bank", model=real_backbone) as memory:
        block = MSAMemoryBlock(memory, similarity_top_k=1)
        for said in ("My dog is called Pim.", "I live by the canal in Utrecht.", "I play the viola on Mondays."):
            await block.aput([ChatMessage(role="user", content=said)], session_id="s")
        for question, expected in (
            ("What is my dog's name?", "My dog is called Pim."),
            ("What do I play on Mondays?", "I play the viola on Mondays."),
        ):
            asked = [ChatMessage(role="user", content=question)]
            assert await block.aget(asked, session_id="s") == f"[{day(dates.clock())}] user: {expected}"
