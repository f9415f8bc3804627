"""Memories on the tiny backbone, and settings under which LlamaIndex's global models must never be asked for."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import Settings

from facade import opened, topics
from tiny import tiny_adapter


@pytest.fixture(autouse=True)
def no_global_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drop-in that asks Settings for a model would call OpenAI."""

    def refuse(self: Any) -> Any:
        raise AssertionError("Settings was asked for a model")

    monkeypatch.setattr(type(Settings), "llm", property(refuse))
    monkeypatch.setattr(type(Settings), "embed_model", property(refuse))


@pytest.fixture
def memory(tmp_path, backbone):
    """An empty memory with short prompts; words and names count, as they do by default."""
    with opened(tmp_path, backbone, tiny_adapter(backbone, beside=True)) as memory:
        yield memory


@pytest.fixture
def filled(memory):
    """`memory` with eight documents of one topic each, under the ids that LlamaIndex's nodes have."""
    memory.add([{**topic, "id": f"{topic['id']}::0"} for topic in topics()])
    return memory
