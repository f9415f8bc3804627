"""Ready-made runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msa_plugin.bench.runner import CompareConfig

DEFAULT = "msa+lexical:1+titles+mentions"  # what a memory with the default adapter ranks by when nothing is said
# Systems that need neither a download nor a second model, and what a first look wants to know.
QUICK: dict[str, tuple[str, ...]] = {
    "retrieval": (DEFAULT, "msa", "bm25", "dense-same-backbone"),
    "qa": (DEFAULT, "msa", "bm25", "closed-book"),
}
USUAL: dict[str, tuple[str, ...]] = {
    "retrieval": (DEFAULT, "msa", "bm25", "dense", "dense-same-backbone", "hybrid"),
    "qa": (DEFAULT, "msa", "bm25", "dense", "hybrid", "closed-book"),
}


def quick(part: Literal["retrieval", "qa"], out: Path, **changes: Any) -> CompareConfig:
    """The sample corpus and few systems: minutes on a laptop. `changes` replace settings of `CompareConfig`."""
    return CompareConfig(**{"part": part, "out": out, "systems": QUICK[part], "k": 20, **changes})
