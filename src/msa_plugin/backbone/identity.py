"""What a model and its tokenizer are told from others by: banks and adapters are bound to these hashes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLES = 4096


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over up to 4096 evenly spaced numbers of every weight, in bfloat16.

    The same whether the model was loaded in float32 or bfloat16. A change confined to unsampled numbers of large
    matrices goes unnoticed, which no training or conversion produces.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().flatten()
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step].to(device="cpu", dtype=torch.bfloat16).contiguous()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """SHA-256 of the tokenizer's full definition (vocabulary, merges, normaliser, special tokens)."""
    if tokenizer is None:
        return "none"
    fast = getattr(tokenizer, "backend_tokenizer", None)
    text = fast.to_str() if fast is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
