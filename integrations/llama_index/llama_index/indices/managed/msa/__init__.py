"""LlamaIndex index, retriever and synthesizer over a `LatentMemory`."""
