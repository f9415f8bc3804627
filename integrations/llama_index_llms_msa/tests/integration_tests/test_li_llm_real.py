"""`MSALLM` on the default backbone and the sample corpus."""

from __future__ import annotations

import pytest
from llama_index.core.base.llms.types import ChatMessage

from llama_index.llms.msa import MSALLM
from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.memory import LatentMemory

pytestmark = pytest.mark.slow
ONE_HOP = [q for q in sample_questions() if q.hops == 1]


@pytest.fixture(scope="module")
def memory(tmp_path_factory, real_backbone):
    with LatentMemory.open(tmp_path_factory.mktemp("real"), model=real_backbone) as memory:
        memory.add(sample_documents())
        yield memory


def test_the_model_with_and_without_memory(memory):
    question = ONE_HOP[2]  # of which the small model reads the answer whatever else it is given
    from_memory = MSALLM(memory, mode="memory").chat([ChatMessage(role="user", content=question.question)])
    assert any(answer.lower() in from_memory.message.content.lower() for answer in question.answers)
    assert question.positive_ids[0] in {s["id"] for s in from_memory.additional_kwargs["sources"]}
    plain = MSALLM(memory, max_tokens=8).complete("What is the capital of France?")
    assert "Paris" in plain.text and plain.additional_kwargs == {"sources": []}
