"""Memory Sparse Attention as a drop-in latent memory for language models (arXiv 2603.23516)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msa_plugin.config import GenerationConfig, InterleaveConfig, MemoryConfig
from msa_plugin.errors import MSAError
from msa_plugin.types import Answer, Document, Hit, Source

if TYPE_CHECKING:
    from msa_plugin.memory import LatentMemory

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Document",
    "GenerationConfig",
    "Hit",
    "InterleaveConfig",
    "LatentMemory",
    "MSAError",
    "MemoryConfig",
    "Source",
]


def __getattr__(name: str) -> Any:
    """Import the facade on first use: it loads transformers, which `msa --help` should not wait for."""
    if name == "LatentMemory":
        from msa_plugin.memory import LatentMemory

        return LatentMemory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
