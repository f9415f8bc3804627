"""LlamaIndex's messages and nodes as what the memory takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.schema import BaseNode, NodeWithScore

from msa_plugin.errors import InvalidQueryError
from msa_plugin.integrating import listed

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


def plain(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Role and text of each message. Raises InvalidQueryError for tool messages and for what is not text."""
    for message in messages:
        if message.role not in _ROLES:
            raise InvalidQueryError(
                f"a {message.role.value} message: the backbone is no function-calling model; "
                "use a ReAct agent, which writes observations as user messages"
            )
    return [{"role": _ROLES[message.role], "content": text(message)} for message in messages]


def question(messages: Sequence[ChatMessage]) -> str:
    """Text of the last user message. Raises InvalidQueryError when there is none."""
    asked = [message for message in messages if message.role is MessageRole.USER]
    if not asked:
        raise InvalidQueryError("a memory answers the last user message, and there is none")
    return text(asked[-1])


def text(message: ChatMessage) -> str:
    """A message's text. Raises InvalidQueryError for images and other content that a text model cannot read."""
    other = [block.block_type for block in message.blocks if not isinstance(block, TextBlock)]
    if other:
        raise InvalidQueryError(f"the backbone reads text only; a message holds: {', '.join(other)}")
    return "".join(block.text for block in message.blocks if isinstance(block, TextBlock))


def node_ids(nodes: Iterable[str | BaseNode | NodeWithScore]) -> list[str]:
    """Ids of nodes, which may be given as ids. Raises InvalidQueryError for what is neither, and for a lone one."""
    given = listed("documents", nodes)
    wrong: list[object] = [node for node in given if not isinstance(node, str | BaseNode | NodeWithScore)]
    if wrong:
        raise InvalidQueryError(f"documents= takes nodes or their ids, not {type(wrong[0]).__name__}")
    return [node if isinstance(node, str) else node.node_id for node in given]
