"""Indices on the tiny backbone, and settings under which LlamaIndex's global models must never be asked for."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import Document, Settings
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback

from facade import TOPICS, about, opened
from llama_index.indices.managed.msa import MSAIndex
from tiny import tiny_adapter


@pytest.fixture(autouse=True)
def no_global_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drop-in that asks Settings for a model would call OpenAI."""

    def refuse(self: Any) -> Any:
        raise AssertionError("Settings was asked for a model")

    monkeypatch.setattr(type(Settings), "llm", property(refuse))
    monkeypatch.setattr(type(Settings), "embed_model", property(refuse))


@pytest.fixture
def documents() -> list[Document]:
    """Eight LlamaIndex documents of one topic each."""
    return [
        Document(id_=topic, text=about(topic), metadata={"number": n, "even": n % 2 == 0, "tags": [topic[:3], "all"]})
        for n, topic in enumerate(TOPICS)
    ]


@pytest.fixture
def memory(tmp_path, backbone):
    """An empty memory with short prompts; words and names count, as they do by default."""
    with opened(tmp_path, backbone, tiny_adapter(backbone, beside=True)) as memory:
        yield memory


@pytest.fixture
def index(memory, documents):
    """An index over `memory` with `documents`."""
    return MSAIndex.from_documents(documents, memory=memory)


class Recorder(CustomLLM):
    """Another language model: notes its prompts and says the same thing to each."""

    prompts: list[str]
    reply: str = "said the other model"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=4096, num_output=64)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.prompts.append(prompt)
        return CompletionResponse(text=self.reply)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self.prompts.append(prompt)
        yield CompletionResponse(text=self.reply, delta=self.reply)


@pytest.fixture
def other_llm() -> Recorder:
    """A language model that is not the memory's."""
    return Recorder(prompts=[])
