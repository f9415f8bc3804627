"""LangChain's own test suites, on the tiny backbone and on the default one. No test of theirs is overridden."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_msa import ChatMSA, MSARetriever, MSAVectorStore
from msa_plugin.memory import LatentMemory

# The suites pass an api_key, and conversations to a model that answers questions; other tests check these warnings.
pytestmark = [
    pytest.mark.filterwarnings("ignore:ChatMSA ignores api_key"),
    pytest.mark.filterwarnings("ignore:ChatMSA in mode 'memory' answers the last human message"),
]


class TestStoreOnTiny(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, memory):
        yield MSAVectorStore(memory)


@pytest.mark.slow
class TestStoreOnDefault(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path, real_backbone):
        with LatentMemory.open(tmp_path / "bank", model=real_backbone) as memory:
            yield MSAVectorStore(memory)


class OnTiny:
    @pytest.fixture(autouse=True)
    def _set_up(self, filled):
        self.memory = filled

    settings: dict[str, Any] = {"temperature": 1.5, "seed": 3}  # noqa: RUF012
    tokens = 24


class OnDefault:
    @pytest.fixture(autouse=True)
    def _set_up(self, real_memory):
        self.memory = real_memory

    settings: dict[str, Any] = {"temperature": 0}  # noqa: RUF012
    tokens = 6


class RetrieverSuite(RetrieversIntegrationTests):
    memory: LatentMemory

    @property
    def retriever_constructor(self):
        return MSARetriever

    @property
    def retriever_constructor_params(self):
        return {"memory": self.memory}

    @property
    def retriever_query_example(self):
        return "Who built the mill?"


class TestRetrieverOnTiny(OnTiny, RetrieverSuite):
    pass


@pytest.mark.slow
class TestRetrieverOnDefault(OnDefault, RetrieverSuite):
    pass


class ChatParams:
    memory: LatentMemory
    settings: dict[str, Any]
    tokens: int
    mode = "memory"

    @property
    def chat_model_class(self):
        return ChatMSA

    @property
    def chat_model_params(self):
        return {"memory": self.memory, "mode": self.mode, **self.settings}

    @property
    def standard_chat_model_params(self):
        return {**super().standard_chat_model_params, "max_tokens": self.tokens}

    @property
    def supports_model_override(self):
        return False  # one ChatMSA is one backbone

    @property
    def has_tool_calling(self):
        return False

    @property
    def has_structured_output(self):
        return False


class TestChatUnitOnTiny(OnTiny, ChatParams, ChatModelUnitTests):
    pass


class TestChatUnitInChatModeOnTiny(OnTiny, ChatParams, ChatModelUnitTests):
    mode = "chat"


class TestChatOnTiny(OnTiny, ChatParams, ChatModelIntegrationTests):
    pass


class TestChatInChatModeOnTiny(OnTiny, ChatParams, ChatModelIntegrationTests):
    mode = "chat"


@pytest.mark.slow
class TestChatUnitOnDefault(OnDefault, ChatParams, ChatModelUnitTests):
    pass


@pytest.mark.slow
class TestChatOnDefault(OnDefault, ChatParams, ChatModelIntegrationTests):
    pass


@pytest.mark.slow
class TestChatInChatModeOnDefault(OnDefault, ChatParams, ChatModelIntegrationTests):
    mode = "chat"
