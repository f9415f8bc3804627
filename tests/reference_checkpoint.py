"""Small random checkpoints in the reference's format, written tensor by tensor as its files are laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tiny import SHAPE, tiny_model, tiny_tokenizer

MSA: dict[str, Any] = {
    "aux_loss": False,
    "aux_loss_method": "INFONCE",
    "auxloss_weight": 0.1,
    "chunk_reduce_method": "max",
    "decouple_pooling_mode": "mean",
    "decouple_router": True,
    "head_reduce_method": "mean",
    "infonce_loss_temp": 0.1,
    "pooling_kernel_size": 8,
    "query_reduce_method": "max",
    "rewrite_position": True,
    "router_layer_idx": "2,3",
    "top_k_docs": 3,
}
LIST_END = "<|object_ref_end|>"


def marker_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the reference's marker."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [LIST_END]})
    return tokenizer


def tensors(seed: int = 0, layers: tuple[int, ...] = (2, 3), dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights of a tiny Qwen3 with routers at `layers`."""
    found = {n: t.detach().clone() for n, t in tiny_model("qwen3", seed, tie_word_embeddings=True).named_parameters()}
    generator = torch.Generator().manual_seed(seed + 1)
    hidden, width = SHAPE["hidden_size"], SHAPE["head_dim"]
    for layer in layers:
        for part, heads in (("q", SHAPE["num_attention_heads"]), ("k", SHAPE["num_key_value_heads"])):
            weight = torch.randn(heads * width, hidden, generator=generator) / hidden**0.5
            found[f"model.layers.{layer}.self_attn.router_{part}_proj.0.weight"] = weight
    found = {n: t.to(dtype) for n, t in found.items()}
    return {**found, "temperature": torch.tensor(0.1)}


def write(
    folder: Path,
    *,
    weights: dict[str, Tensor] | None = None,
    shards: int = 1,
    tokenizer: Any = None,
    top: dict[str, Any] | None = None,
    **msa: Any,
) -> Path:
    """Write a checkpoint: `top` changes fields of config.json, `msa` those of msa_config (None removes one)."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = {k: v for k, v in {**MSA, **msa}.items() if v is not None}
    raw = {
        **SHAPE,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "model_type": "msa",
        "architectures": ["MSAForCausalLM"],
        "msa_config": merged,
        **(top or {}),
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    (tokenizer or marker_tokenizer()).save_pretrained(folder)
    found = tensors() if weights is None else weights
    names = sorted(found)
    if shards == 1:
        save_file(found, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return folder
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = names[index::shards]
        save_file({n: found[n] for n in part}, str(folder / file))
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
