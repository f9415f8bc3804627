"""The table of supported model families: every Hugging Face config is normalised here once, and nowhere else.

Nothing below or above this file asks for the family again.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msa_plugin.errors import UnsupportedBackboneError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

FAMILIES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
}


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone's shape."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int


def describe(config: PretrainedConfig) -> BackboneSpec:
    """Normalise a model config.

    Raises UnsupportedBackboneError for a family that is not in the table.
    """
    if config.model_type not in FAMILIES:
        hint = " (load its text model, model_type 'gemma3_text')" if config.model_type == "gemma3" else ""
        raise UnsupportedBackboneError(
            f"model_type {config.model_type!r} is not supported{hint}; supported: {', '.join(sorted(FAMILIES))}"
        )
    return BackboneSpec(
        family=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
    )


def shift_keys(model: PreTrainedModel, layer: int, keys: Tensor, by: int) -> Tensor:
    """Keys [..., D] after RoPE, as they would be `by` positions further on.

    A rotation is linear, so the mean of keys (a pooled chunk) shifts exactly like a single key.
    """
    rotary, position = model.model.rotary_emb, torch.tensor([[by]], device=keys.device)
    probe = torch.zeros(1, dtype=torch.float32, device=keys.device)
    kinds = getattr(model.config, "layer_types", None)
    # Families whose layers differ in RoPE take the kind of layer as a third argument.
    per_kind = "layer_type" in signature(rotary.forward).parameters
    cos, sin = rotary(probe, position, kinds[layer]) if per_kind and kinds else rotary(probe, position)
    cos, sin = cos[0, 0], sin[0, 0]
    # Some RoPE variants scale cos and sin; that has been applied to these keys once already.
    norm = (cos**2 + sin**2).sqrt()
    plain = keys.float()
    first, second = plain.chunk(2, dim=-1)
    shifted: Tensor = plain * (cos / norm) + torch.cat([-second, first], dim=-1) * (sin / norm)
    return shifted.to(keys.dtype)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of any family in the table, in order; each has `self_attn`."""
    return list(model.model.layers)
