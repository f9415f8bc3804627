"""What a model is called whose weights a bank was made with, told without loading any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from msa_plugin.backbone.cache import cache_dir


def model_name(weights: str) -> str:
    """The name of the model with these weights, by the adapters that ship or were calibrated here; "" if unknown."""
    return next((name for file in _adapters(weights) if (name := _named(file, weights))), "")


def _named(file: Path, weights: str) -> str:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        name = str(config["name"]) if config["backbone"] == weights else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name.removesuffix(" routing").removesuffix(" calibrated")


def _adapters(weights: str) -> Iterator[Path]:
    shipped = Path(str(resources.files("msa_plugin"))) / "adapters"
    yield from sorted(shipped.glob("*/adapter.json"))
    yield cache_dir() / "adapters" / weights / "adapter.json"
