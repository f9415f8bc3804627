from llama_index.core import Document
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.tools import QueryEngineTool

from llama_index.indices.managed.msa import MSAIndex
from msa_plugin import LatentMemory

ASKED = """```json
{"items": [
    {"sub_question": "Who built the Kestrel Mill?", "tool_name": "mills"},
    {"sub_question": "When does the ferry to Lisse leave?", "tool_name": "ferries"}
]}
```"""


class YourLLM(MockLLM):  # stands for a model that writes JSON; the default backbone is too small for it
    def complete(self, prompt, formatted=False, **kwargs):
        return super().complete(
            ASKED if "Sub Question" in prompt or "sub_question" in prompt else "Anna Veld; at noon."
        )


memory = LatentMemory.open("bank/")
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
engine = SubQuestionQueryEngine.from_defaults(
    tools, llm=llm, question_gen=LLMQuestionGenerator.from_defaults(llm=llm), verbose=False, use_async=False
)
answer = engine.query("Who built the mill, and when does the ferry leave?")
sources = [node.node_id for node in answer.source_nodes]
