"""LlamaIndex index, retriever, synthesizer and agent memory over a `LatentMemory`."""

from llama_index.indices.managed.msa.base import MSAIndex
from llama_index.indices.managed.msa.memory_block import MSAMemoryBlock
from llama_index.indices.managed.msa.retriever import MSARetriever
from llama_index.indices.managed.msa.synthesizer import MSASynthesizer
from llama_index.indices.managed.msa.transform import WholeDocument

__all__ = ["MSAIndex", "MSAMemoryBlock", "MSARetriever", "MSASynthesizer", "WholeDocument"]
