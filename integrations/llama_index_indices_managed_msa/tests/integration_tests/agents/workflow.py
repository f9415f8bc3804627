import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import Memory

from llama_index.indices.managed.msa import MSAMemoryBlock
from msa_plugin import LatentMemory


def ferry_times(harbour: str) -> str:
    """When ferries leave a harbour."""
    return f"From {harbour}: at noon."


def visit(session: str, *lines: str) -> list[str]:
    """A conversation; what leaves its short history is stored, and recalled in this visit and in later ones."""
    with LatentMemory.open("bank/") as long_term:
        block = MSAMemoryBlock(long_term, across_sessions=True, similarity_top_k=1)
        memory = Memory.from_defaults(
            session_id=session,
            token_limit=120,
            chat_history_token_ratio=0.3,
            token_flush_size=10,
            memory_blocks=[block],
        )
        shown: list[str] = []

        def model(messages: list[ChatMessage], **kwargs: object) -> ChatMessage:
            shown.append("\n".join(message.content or "" for message in messages))
            return ChatMessage(role="assistant", content="I see.")  # your model's turn

        llm = MockFunctionCallingLLM(response_generator=model)  # stands for OpenAI(...), Ollama(...)
        agent = FunctionAgent(tools=[ferry_times], llm=llm)

        async def talk() -> None:
            for line in lines:
                await agent.run(line, memory=memory)

        asyncio.run(talk())
        return shown


monday = visit(
    "monday",
    "My dog is called Pim, and he likes long walks along the canal in the evening.",
    "I take the ferry to Lisse at noon, because the train does not run on Mondays any more.",
    "The weather is fine today, and the harbour is full of people who look at the ships.",
)
friday = visit("friday", "What is the name of my dog?")
