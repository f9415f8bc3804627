from dataclasses import dataclass

from langchain.agents import create_agent
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage

from langchain_msa import MSAMemoryMiddleware
from msa_plugin import LatentMemory


@dataclass
class Visitor:
    name: str


class Model(FakeMessagesListChatModel):  # stands for ChatOpenAI(...), ChatOllama(...): any chat model
    def bind_tools(self, tools, **kwargs):
        return self


with LatentMemory.open("bank/") as memory:
    remembering = MSAMemoryMiddleware(memory, namespace=lambda run: ("visitors", run.context.name), k=2, max_tokens=200)
    agent = create_agent(
        Model(responses=[AIMessage("Noted."), AIMessage("Pim.")]),
        tools=[],
        middleware=[remembering],
        context_schema=Visitor,
    )
    agent.invoke({"messages": [("user", "My dog is called Pim.")]}, context=Visitor("ann"))
    state = agent.invoke({"messages": [("user", "What is the name of my dog?")]}, context=Visitor("ann"))
    stored = [document.text for document in memory.within("visitors", "ann").documents()]
