from contextlib import closing
from dataclasses import dataclass
from uuid import uuid4

from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime

from langchain_msa import MSAStore


@dataclass
class Visitor:
    name: str


def reply(state: MessagesState, runtime: Runtime[Visitor]) -> dict[str, list[AIMessage]]:
    facts = ("visitors", runtime.context.name)
    said = state["messages"][-1].text
    known = runtime.store.search(facts, query=said, limit=1)  # what this visitor said in any thread, at any time
    runtime.store.put(facts, str(uuid4()), {"text": said})  # on the disk when it returns
    return {"messages": [AIMessage(known[0].value["text"] if known else "Tell me more.")]}  # your model's turn


def visit(name: str, *lines: str) -> list[str]:
    """A conversation in a thread of its own, in a process of its own for all that the store knows."""
    with closing(MSAStore(path="bank/")) as store:
        builder = StateGraph(MessagesState, context_schema=Visitor)
        builder.add_node(reply)
        builder.add_edge(START, "reply")
        graph = builder.compile(checkpointer=InMemorySaver(), store=store)
        thread = {"configurable": {"thread_id": str(uuid4())}}
        for line in lines:
            state = graph.invoke({"messages": [("user", line)]}, thread, context=Visitor(name))
        return [message.text for message in state["messages"]]


monday = visit("ann", "My dog is called Pim.", "I take the ferry to Lisse at noon.")
friday = visit("ann", "What is the name of my dog?")
stranger = visit("bob", "What is the name of my dog?")
