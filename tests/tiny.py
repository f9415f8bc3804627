"""Tiny random models of every family, a byte-level tokenizer, and adapters for them, built in code."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import (
    Abilities,
    BesideConfig,
    ContentConfig,
    RelevanceConfig,
    RelevanceWeights,
    RoutingConfig,
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "mistral-sliding": (MistralConfig, {"sliding_window": 7}),
    "gemma": (GemmaConfig, {}),
    "gemma2": (Gemma2Config, {"sliding_window": 7, "query_pre_attn_scalar": 16}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 7, "query_pre_attn_scalar": 16}),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, three special tokens, and a chat template in the usual style."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def tiny_model(family: str = "llama", seed: int = 0, **overrides: Any) -> Any:
    """A random float32 model."""
    kind, extra = FAMILIES[family]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(kind(**{**SHAPE, **extra, **overrides}), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def tiny_backbone(family: str = "llama", seed: int = 0, **overrides: Any) -> Backbone:
    """A random backbone with the byte-level tokenizer."""
    return Backbone(tiny_model(family, seed, **overrides), tiny_tokenizer(), f"tiny-{family}")


def save_tiny(folder: Path, backbone: Backbone) -> list[str]:
    """A backbone and a tiny adapter for it as folders in `folder`; the options that name them."""
    backbone.model.save_pretrained(folder / "model")
    backbone.tokenizer.save_pretrained(folder / "model")
    tiny_adapter(backbone).save(folder / "adapter")
    return ["--model", str(folder / "model"), "--adapter", str(folder / "adapter")]


def tiny_lora(model: Any, layers: Sequence[int] = (0, 1), rank: int = 3) -> Lora:
    """A random update that changes what a model computes, though not beyond recognition."""
    generator = torch.Generator().manual_seed(3)
    lora = Lora.fresh(model, layers, rank, generator=generator)
    for update in lora.updates.values():
        update.up.normal_(std=0.1, generator=generator)
    return lora


def merged(backbone: Backbone, lora: Lora) -> Backbone:
    """A copy of `backbone` whose weights have taken the update up."""
    model = deepcopy(backbone.model)
    with torch.no_grad():
        for (layer, module), update in lora.updates.items():
            decoder_layers(model)[layer].get_submodule(module).weight += update.up.float() @ update.down.float()
    return Backbone(model, tiny_tokenizer(), backbone.name)


def with_lora(adapter: Adapter, lora: Lora, *, answers: bool = False) -> Adapter:
    """The same adapter with a LoRA beside its router."""
    config = adapter.config.model_copy(update={"lora": lora.described(answers=answers)})
    return replace(adapter, config=config, lora=lora)


def with_reader(adapter: Adapter, backbone: Backbone) -> Adapter:
    """With a reader that was never trained."""
    abilities = adapter.config.abilities.model_copy(update={"answer": True, "read_kv": True})
    config = adapter.config.model_copy(update={"abilities": abilities})
    return replace(adapter, reader=tiny_lora(backbone.model), config=config)


def tiny_adapter(backbone: Backbone, *, read_latent: bool = False, beside: bool = False, **routing: Any) -> Adapter:
    """A random projection router; by default one shared selection over layers 0 and 2, pooled questions, P = 8.

    With `beside`, words and names count as much as they do with the adapter that ships.
    """
    settings: dict[str, Any] = {
        "layers": (0, 2),
        "heads": 1,
        "kv_heads": 1,
        "head_dim": 24,
        "pooling": 8,
        "selection": "shared",
        "query_reduce": "pooled",
        **routing,
    }
    config = RoutingConfig(**settings)
    generator = torch.Generator().manual_seed(7)
    hidden = backbone.spec.hidden

    def random(rows: int) -> Tensor:
        return torch.randn(rows, hidden, generator=generator) / hidden**0.5

    def layer() -> RouterLayer:
        # Questions and documents share the projection, so that a text is nearest to itself.
        if config.heads == config.kv_heads:
            both = random(config.key_width)
            return RouterLayer(both, both.clone())
        return RouterLayer(random(config.heads * config.head_dim), random(config.key_width))

    layers = {} if config.source == "attention" else {index: layer() for index in config.layers}
    weights = torch.rand(backbone.spec.vocab, generator=generator) if config.token_weighted else None
    reading = (2, 3) if config.selection == "shared" else config.layers
    return Adapter(
        AdapterConfig(
            name="tiny",
            backbone=backbone.weights_hash(),
            tokenizer=backbone.tokenizer_hash(),
            hidden=hidden,
            routing=config,
            reading=ContentConfig(layers=reading, pooling=config.pooling),
            abilities=Abilities(route=True, read_latent=read_latent),
            top_k=4,
            prefix=SPECIAL[1],
            beside=BesideConfig(lexical=1.0, titles=0.4, mentions=0.4) if beside else BesideConfig(),
        ),
        Router(config, layers, weights),
    )


def judging(adapter: Adapter) -> Adapter:
    """The same adapter with relevance by words alone, and sharply: half of a question's words are not enough."""
    fitted = RelevanceConfig(
        words=RelevanceWeights(bias=-12.0, key=0.0, key_lead=0.0, words=40.0, words_lead=0.0),
        keys=RelevanceWeights(bias=0.0, key=0.0, key_lead=0.0),
        unrelated=0.0,
        least=0.3,
    )
    return replace(adapter, config=adapter.config.model_copy(update={"relevance": fitted}))
