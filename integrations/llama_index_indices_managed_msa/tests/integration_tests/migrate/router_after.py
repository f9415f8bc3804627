from llama_index.core import Document
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from llama_index.indices.managed.msa import MSAIndex
from msa_plugin import LatentMemory


class YourLLM(MockLLM):  # stands for a model that follows instructions; the default backbone is too small for it
    def complete(self, prompt, formatted=False, **kwargs):
        return super().complete('[{"choice": 2, "reason": "It asks about ferries."}]')


memory = LatentMemory.open("bank/")  # one model and one bank; an index for each namespace
mills = MSAIndex.from_documents(
    [Document(text="Anna Veld built the Kestrel Mill in 1821.", id_="mill")], memory=memory.within("mills")
)
ferries = MSAIndex.from_documents(
    [Document(text="The ferry to Lisse leaves at noon.", id_="ferry")], memory=memory.within("ferries")
)
tools = [
    QueryEngineTool.from_defaults(mills.as_query_engine(), name="mills", description="About mills."),
    QueryEngineTool.from_defaults(ferries.as_query_engine(), name="ferries", description="About ferries."),
]
llm = YourLLM()
engine = RouterQueryEngine.from_defaults(tools, llm=llm, selector=LLMSingleSelector.from_defaults(llm=llm))
answer = engine.query("When does the ferry leave?")
sources = [node.node_id for node in answer.source_nodes]
