"""LlamaIndex LLM over a `LatentMemory`."""
