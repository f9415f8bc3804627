"""LangChain and LangGraph classes over a `LatentMemory`.

A vector store, a retriever, a chat model and the chain that pairs them; for agents a LangGraph store and a middleware.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_msa.chains import create_msa_chain
from langchain_msa.chat_models import ChatMSA
from langchain_msa.retrievers import MSARetriever
from langchain_msa.vectorstores import MSAVectorStore, MSAVectorStoreRetriever
from msa_plugin.errors import MissingExtraError

if TYPE_CHECKING:
    from langchain_msa.middleware import MSAMemoryMiddleware
    from langchain_msa.store import MSAStore

__all__ = [
    "ChatMSA",
    "MSAMemoryMiddleware",
    "MSARetriever",
    "MSAStore",
    "MSAVectorStore",
    "MSAVectorStoreRetriever",
    "create_msa_chain",
]
_OPTIONAL = {"MSAStore": ("store", "langgraph"), "MSAMemoryMiddleware": ("middleware", "agents")}


def __getattr__(name: str) -> Any:
    """What needs more than langchain-core is imported when it is first used."""
    if name not in _OPTIONAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _OPTIONAL[name]
    try:
        return getattr(import_module(f"langchain_msa.{module}"), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f'{name} needs {error.name}: pip install "langchain-msa[{extra}]"') from error
