"""LangChain classes over a `LatentMemory`: a vector store, a retriever, a chat model and the chain that pairs them."""

from __future__ import annotations

from msa_plugin.errors import MissingExtraError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingExtraError('langchain_msa needs langchain-core: pip install "msa-plugin[langchain]"') from error

from langchain_msa.chains import create_msa_chain
from langchain_msa.chat_models import ChatMSA
from langchain_msa.retrievers import MSARetriever
from langchain_msa.vectorstores import MSAVectorStore, MSAVectorStoreRetriever

__all__ = ["ChatMSA", "MSARetriever", "MSAVectorStore", "MSAVectorStoreRetriever", "create_msa_chain"]
