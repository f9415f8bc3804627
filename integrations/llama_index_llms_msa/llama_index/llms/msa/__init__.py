"""LlamaIndex LLM over a `LatentMemory`."""

from llama_index.llms.msa.base import MSALLM

__all__ = ["MSALLM"]
