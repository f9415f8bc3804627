from llama_index.core import Document, get_response_synthesizer
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index.indices.managed.msa import MSAIndex

documents = [
    Document(text="Anna Veld built the Kestrel Mill in 1821.", id_="mill", metadata={"year": 1821}),
    Document(text="The lighthouse was lit for the first time in 1811.", id_="lighthouse", metadata={"year": 1811}),
]
llm = MockLLM()  # stands for the model that writes your answers
index = MSAIndex.from_documents(documents, path="bank/")
# unchanged from here on
recent = MetadataFilters(filters=[MetadataFilter(key="year", value=1820, operator=FilterOperator.GT)])
retriever = index.as_retriever(similarity_top_k=1, filters=recent)
engine = RetrieverQueryEngine(retriever, get_response_synthesizer(llm=llm))
answer = engine.query("Who built the mill?")
