"""Checkpoints in the reference's format (golden spec section 1): Qwen3 weights, router projections, `msa_config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import Abilities, ContentConfig, RoutingConfig
from msa_plugin.errors import CheckpointError

_EXACT_COSINE = "INFONCE"


def load_reference(folder: Path, *, cosine: bool | None = None) -> tuple[Backbone, Adapter]:
    """Load a reference checkpoint from one folder with `config.json` and `model.safetensors`, in float32.

    `cosine` decides whether routing scores are cosines; None follows the reference's inference code, which normalises
    only when `aux_loss_method` is exactly INFONCE (golden spec 3.4). Raises CheckpointError naming the field.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(str(folder / "model.safetensors"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read a checkpoint from {folder}: {error}") from error
    if not isinstance(raw.get("msa_config"), dict):
        raise CheckpointError(f"{folder / 'config.json'}: field 'msa_config' is missing")
    routing = routing_of(raw, raw["msa_config"], cosine)
    backbone = Backbone(_model(raw, tensors), None, folder.name)
    config = AdapterConfig(
        name=folder.name,
        backbone=backbone.weights_hash(),
        tokenizer="none",
        hidden=raw["hidden_size"],
        routing=routing,
        reading=ContentConfig(layers=routing.layers, pooling=routing.pooling),
        abilities=Abilities(route=True, read_latent=True, emit_ids=True),
        top_k=raw["msa_config"].get("doc_top_k", raw["msa_config"].get("top_k_docs", 16)),
    )
    return backbone, Adapter(config, Router(routing, _router_layers(tensors, routing)))


def routing_of(raw: dict[str, Any], msa: dict[str, Any], cosine: bool | None) -> RoutingConfig:
    """`RoutingConfig` of a reference config; `raw` is config.json, `msa` its `msa_config`."""
    layers = raw["num_hidden_layers"]
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    listed = str(msa["router_layer_idx"])
    indices = tuple(range(layers)) if listed == "all" else tuple(sorted(int(i) for i in listed.split(",")))
    if indices[-1] >= layers:
        raise CheckpointError(f"router_layer_idx names layer {indices[-1]}, but the model has {layers} layers")
    decoupled = bool(msa.get("decouple_router", True))
    normalize = msa.get("aux_loss_method") == _EXACT_COSINE if cosine is None else cosine
    return RoutingConfig(
        layers=indices,
        heads=raw["num_attention_heads"],
        kv_heads=raw["num_key_value_heads"],
        head_dim=head_dim,
        pooling=msa["pooling_kernel_size"],
        source="projection" if decoupled else "attention",
        head_reduce=msa.get("head_reduce_method", "mean"),
        query_reduce=msa.get("query_reduce_method", "max"),
        chunk_reduce=msa.get("chunk_reduce_method", "max"),
        normalize=normalize,
        scale=1.0 if decoupled and normalize else head_dim**-0.5,
    )


def _model(raw: dict[str, Any], tensors: dict[str, Tensor]) -> Qwen3ForCausalLM:
    ours = {"msa_config", "model_type", "architectures", "transformers_version", "torch_dtype"}
    fields = {k: v for k, v in raw.items() if k not in ours}
    # transformers 4 wrote "no sliding window" as false; 5 accepts only a number or nothing.
    fields["sliding_window"] = fields.get("sliding_window") or None
    config = Qwen3Config(**fields)
    model = Qwen3ForCausalLM(config)
    weights = {k: v for k, v in tensors.items() if "router_" not in k and k not in ("temperature", "b")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [k for k in missing if not (k == "lm_head.weight" and config.tie_word_embeddings)]
    if missing or unexpected:
        raise CheckpointError(f"model.safetensors: missing {missing[:4]}, unexpected {list(unexpected)[:4]}")
    model.tie_weights()
    return model.to(torch.float32).eval()


def _router_layers(tensors: dict[str, Tensor], routing: RoutingConfig) -> dict[int, RouterLayer]:
    if routing.source == "attention":
        return {}
    try:
        return {
            i: RouterLayer(
                tensors[f"model.layers.{i}.self_attn.router_q_proj.0.weight"],
                tensors[f"model.layers.{i}.self_attn.router_k_proj.0.weight"],
            )
            for i in routing.layers
        }
    except KeyError as error:
        raise CheckpointError(f"model.safetensors lacks {error.args[0]}") from error
