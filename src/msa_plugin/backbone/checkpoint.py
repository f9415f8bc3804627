"""Loading checkpoints in the reference's format: one copy of the weights in memory, a tensor at a time, any dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3ForCausalLM

from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.checkpoint_format import (
    SCALARS,
    Reference,
    check_markers,
    check_sizes,
    check_tensors,
    describe_reference,
    foreign_errors,
    read_extra,
    router_names,
)
from msa_plugin.backbone.loading import load_tokenizer
from msa_plugin.backbone.placement import Placement, dispatch
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import Abilities, ContentConfig
from msa_plugin.errors import CheckpointError


def load_reference(
    folder: Path,
    *,
    cosine: bool | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = False,
) -> tuple[Backbone, Adapter]:
    """Load a reference checkpoint from one folder, sharded or not; `tokenizer` loads and checks its tokenizer too.

    `cosine` is as in `describe_reference`; `device` may be "balanced", which spreads layers over all GPUs.
    Everything is checked before the first weight is read. Raises CheckpointError naming the field that is wrong.
    """
    reference = describe_reference(folder, cosine)
    model = empty_model(reference)
    files = check_tensors(reference, {n: tuple(t.shape) for n, t in model.state_dict().items()})
    words = _tokenizer(reference) if tokenizer else None
    placement = Placement.of(model, device, dtype)
    others = _fill(model, reference, files, placement, dtype)
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        with foreign_errors(folder / "generation_config.json"):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    backbone = Backbone(dispatch(model.eval(), placement), words, folder.name)
    backbone.own_adapter = _adapter(reference, backbone, others)
    return backbone, backbone.own_adapter


def empty_model(reference: Reference) -> Qwen3ForCausalLM:
    """The model without weights. Raises CheckpointError where the files do not have the sizes of config.json."""
    check_sizes(reference)
    with foreign_errors(reference.folder / "config.json"), init_empty_weights(include_buffers=False):
        return Qwen3ForCausalLM(reference.model)


def _tokenizer(reference: Reference) -> PreTrainedTokenizerBase:
    with foreign_errors(reference.folder / "tokenizer.json"):
        tokenizer = load_tokenizer(reference.folder, config=reference.model)
    check_markers(tokenizer, reference.folder)
    if len(tokenizer) > reference.model.vocab_size:
        raise CheckpointError(
            f"{reference.folder}: the tokenizer has {len(tokenizer)} tokens, config.json's vocab_size is "
            f"{reference.model.vocab_size}"
        )
    return tokenizer


def _fill(
    model: nn.Module, reference: Reference, files: dict[str, list[str]], placement: Placement, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Put every weight where it belongs, one at a time; returns the tensors that are not the backbone's."""
    others: dict[str, Tensor] = {}
    own = dict(model.named_parameters())
    for file, names in files.items():
        with safe_open(str(reference.folder / file), "pt") as opened:
            for name in sorted(names):
                tensor = opened.get_tensor(name)
                if name in own:
                    _assign(model, name, tensor.to(device=placement.device(name), dtype=dtype))
                elif name != "lm_head.weight":  # of a tied model, saved nevertheless
                    others[name] = tensor.clone()
    return others


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter itself: a copy into one would hold both."""
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, nn.Parameter(tensor, requires_grad=False))


def _adapter(reference: Reference, backbone: Backbone, others: dict[str, Tensor]) -> Adapter:
    routing = reference.routing
    layers = {}
    if routing.source == "projection":
        # Kept in the dtype they came in, unless the model's is wider: routing decides what is read at all.
        layers = {
            i: RouterLayer(*(_at_least(others[n], backbone.dtype) for n in router_names(i))) for i in routing.layers
        }
    fields: dict[str, Any] = {
        "name": reference.folder.name,
        "abilities": Abilities(route=True, read_latent=True, emit_ids=True),
        "provenance": {"format": "reference", "msa_config": dict(reference.msa), **_scalars(others)},
        **read_extra(reference.folder),
    }
    config = AdapterConfig(
        backbone=backbone.weights_hash(),
        tokenizer=backbone.tokenizer_hash(),
        hidden=reference.model.hidden_size,
        routing=routing,
        reading=ContentConfig(layers=routing.layers, pooling=routing.pooling),
        top_k=reference.top_k,
        numbered=True,
        **fields,
    )
    return Adapter(config, Router(routing, layers))


def _at_least(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, dtype)) if dtype == torch.float32 else tensor


def _scalars(others: dict[str, Tensor]) -> dict[str, Any]:
    """The loss's own scalars, which inference does not use, so that a conversion back can write them again."""
    return {
        name: {
            "value": others[name].flatten().tolist(),
            "shape": list(others[name].shape),
            "dtype": str(others[name].dtype),
        }
        for name in SCALARS
        if name in others
    }
