"""On which devices a model's weights go: one device, or its layers spread over all GPUs (through accelerate)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory

from msa_plugin.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BALANCED = "balanced"


@dataclass(frozen=True)
class Placement:
    """`first` is where token ids go; `modules` maps a module's name to its device where there are several."""

    first: torch.device
    modules: Mapping[str, torch.device] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel, device: str, dtype: torch.dtype) -> Placement:
        """Place a model that has no weights yet. Raises ConfigError for an unknown device."""
        if device != BALANCED or torch.cuda.device_count() < 2:
            return cls(pick_device("auto" if device == BALANCED else device))
        whole = list(model._no_split_modules or [])
        memory = get_balanced_memory(model, dtype=dtype, no_split_module_classes=whole)
        found = infer_auto_device_map(model, max_memory=memory, dtype=dtype, no_split_module_classes=whole)
        return cls.spread(found)

    @classmethod
    def spread(cls, device_map: Mapping[str, int | str]) -> Placement:
        """From a device map as accelerate writes it. Raises ConfigError where it names a disk."""
        if "disk" in device_map.values():
            raise ConfigError("the model does not fit the devices' memory; a smaller dtype or model is needed")
        modules = {
            name: torch.device(f"cuda:{where}" if isinstance(where, int) else where)
            for name, where in device_map.items()
        }
        return cls(modules.get("model.embed_tokens", next(iter(modules.values()))), modules)

    def device(self, parameter: str) -> torch.device:
        """Where a parameter goes: with the longest module name that it starts with."""
        name = parameter
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        return self.modules.get(name, self.first)


def dispatch(model: PreTrainedModel, placement: Placement) -> PreTrainedModel:
    """Move what is left (buffers) and, with several devices, let inputs follow the layers."""
    if not placement.modules:
        return model.to(placement.first)
    spread: PreTrainedModel = dispatch_model(model, dict(placement.modules), force_hooks=True)
    return spread


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA when there is one, else the CPU. Raises ConfigError for an unknown device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {device!r}; use 'auto', 'cpu', 'cuda', 'cuda:N' or '{BALANCED}' (spread over all GPUs)"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but this PyTorch sees no CUDA device")
    return chosen
