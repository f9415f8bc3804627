from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory

from llama_index.indices.managed.msa import MSAMemoryBlock
from msa_plugin import LatentMemory

block = MSAMemoryBlock(LatentMemory.open("bank/"))
memory = Memory.from_defaults(session_id="visit", token_limit=60, token_flush_size=20, memory_blocks=[block])
messages = [
    ChatMessage(role="user", content="My mill is called Kestrel Mill, and Anna Veld built it in 1821."),
    ChatMessage(role="assistant", content="Noted: Kestrel Mill."),
    ChatMessage(role="user", content="My dog is called Pim, and he likes long walks along the canal."),
    ChatMessage(role="assistant", content="Noted: Pim the dog."),
]
