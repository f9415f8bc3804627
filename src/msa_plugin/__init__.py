"""Memory Sparse Attention as a drop-in latent memory for language models (arXiv 2603.23516)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msa_plugin.config import ClusterConfig, GenerationConfig, InterleaveConfig, MemoryConfig, TierConfig
    from msa_plugin.errors import MSAError
    from msa_plugin.memory import LatentMemory
    from msa_plugin.types import Answer, Document, Hit, Source

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "ClusterConfig",
    "Document",
    "GenerationConfig",
    "Hit",
    "InterleaveConfig",
    "LatentMemory",
    "MSAError",
    "MemoryConfig",
    "Source",
    "TierConfig",
]
_HOMES = {
    "config": ("ClusterConfig", "GenerationConfig", "InterleaveConfig", "MemoryConfig", "TierConfig"),
    "errors": ("MSAError",),
    "memory": ("LatentMemory",),
    "types": ("Answer", "Document", "Hit", "Source"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the facade loads transformers, which `msa --help` should not wait for."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"msa_plugin.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
