"""What the LangChain tests share: no network, a filled memory on the tiny backbone, and one on the default backbone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_socket import disable_socket, enable_socket

from facade import opened, topics
from langchain_msa import ChatMSA, MSAVectorStore
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter

FACTS = [
    {"id": "mill", "title": "Kestrel Mill", "text": "Anna Veld built the Kestrel Mill in 1821.", "metadata": {"n": 1}},
    {"id": "tinker", "title": "Tinker", "text": "The blue-throated tinker eats beetles.", "metadata": {"n": 2}},
    {"id": "train", "title": "Trains", "text": "Harbour trains ran to Port Arno until 1934.", "metadata": {"n": 3}},
    {"id": "ferry", "title": "Ferry", "text": "The ferry to Lisse leaves at noon.", "metadata": {"n": 4}},
]


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Sockets are refused, but for those that an event loop wakes itself with."""
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


@pytest.fixture
def filled(tmp_path: Path, backbone: Backbone) -> Iterator[LatentMemory]:
    """Eight documents on the tiny backbone; words and names count, as they do by default."""
    with opened(tmp_path / "filled", backbone, tiny_adapter(backbone, beside=True)) as memory:
        memory.add(topics())
        yield memory


@pytest.fixture
def store(filled: LatentMemory) -> MSAVectorStore:
    """A store over them."""
    return MSAVectorStore(filled)


@pytest.fixture
def llm(filled: LatentMemory) -> ChatMSA:
    """A chat model that answers from them; it writes something, as greedy random models like not to."""
    return ChatMSA(filled, mode="memory", temperature=1.5, seed=3, max_tokens=12)


@pytest.fixture(scope="session")
def real_memory(tmp_path_factory: pytest.TempPathFactory, real_backbone: Backbone) -> Iterator[LatentMemory]:
    """Four facts on the default backbone."""
    with LatentMemory.open(tmp_path_factory.mktemp("real") / "bank", model=real_backbone) as memory:
        memory.add(FACTS)
        yield memory
