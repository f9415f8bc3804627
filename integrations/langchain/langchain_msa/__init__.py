"""LangChain classes over a `LatentMemory`."""
