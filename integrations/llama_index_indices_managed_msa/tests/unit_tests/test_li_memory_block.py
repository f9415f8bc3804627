"""`MSAMemoryBlock`: what leaves an agent's chat history is kept and recalled."""

from __future__ import annotations

import pytest
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import InsertMethod, Memory

from facade import about, opened, topics
from llama_index.indices.managed.msa import MSAMemoryBlock
from msa_plugin import dates


def turn(topic):
    return [
        ChatMessage(role="user", content=f"Tell me of the {topic}. {about(topic)}"),
        ChatMessage(role="assistant", content=f"The {topic} is noted."),
    ]


def conversation(block, session="s", **settings):
    return Memory.from_defaults(
        session_id=session, token_limit=100, token_flush_size=30, memory_blocks=[block], **settings
    )


async def filled(block, session="s", topics=("violin", "saffron", "meteor", "harbour")):
    memory = conversation(block, session)
    for topic in topics:
        for message in turn(topic):
            await memory.aput(message)
    return memory


async def test_flushed_turns_are_recalled_by_the_latest_user_message(memory):
    chat = await filled(MSAMemoryBlock(memory, similarity_top_k=1))
    assert memory.stats().documents >= 2
    system, *history = await chat.aget(input=turn("violin")[0].content)
    assert system.role == "system" and "long_term_memory" in system.content
    assert "user: Tell me of the violin." in system.content
    assert "assistant: The violin is noted." in system.content
    assert "saffron" not in system.content
    assert all("Tell me of the violin" not in m.content for m in history)


async def test_a_turn_says_its_day_and_the_question_it_answers(memory, monkeypatch):
    monkeypatch.setattr(dates, "clock", lambda: "2026-03-02T09:00:00+00:00")
    block = MSAMemoryBlock(memory)
    said = [("user", "My violin is gone."), ("assistant", "Noted. Where is it?"), ("user", "In Lisse.")]
    await block.aput([ChatMessage(role=role, content=text) for role, text in said], session_id="s")
    stored = memory.documents()
    assert [document.text for document in stored] == [
        "[2 March 2026] user: My violin is gone.\nassistant: Noted. Where is it?",
        "[2 March 2026] assistant: Where is it?\nuser: In Lisse.",
    ]
    assert memory.turns_around(stored[1].id)[0].id == stored[0].id
    assert {document.metadata["session_id"] for document in stored} == {"s"}


async def test_a_block_recalls_its_own_session_unless_told_otherwise(memory):
    await filled(MSAMemoryBlock(memory))
    question = turn("violin")[0].content
    other = conversation(MSAMemoryBlock(memory), session="another")
    assert await other.aget(input=question) == []
    both = conversation(MSAMemoryBlock(memory, across_sessions=True), session="another")
    assert "violin" in (await both.aget(input=question))[0].content


async def test_documents_of_the_memory_are_no_conversation(memory):
    memory.add(topics())
    block = MSAMemoryBlock(memory, across_sessions=True)
    assert await block.aget([ChatMessage(role="user", content=about("violin"))]) == ""
    await block.aput(turn("violin"))
    assert "is noted" in await block.aget([ChatMessage(role="user", content=about("violin"))])


async def test_it_survives_a_restart(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter) as memory:
        await filled(MSAMemoryBlock(memory))
    with opened(tmp_path, backbone, adapter) as memory:
        text = await MSAMemoryBlock(memory).aget([ChatMessage(role="user", content="violin")], session_id="s")
        assert "The violin is noted." in text


async def test_turns_are_stored_once_and_without_what_is_not_text(memory):
    block = MSAMemoryBlock(memory)
    empty = ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": []})
    await block.aput([*turn("violin"), empty, *turn("saffron")], session_id="s")
    await block.aput(turn("violin"), session_id="s")
    assert memory.stats().documents == 2
    await block.aput([empty])
    await block.aput([])
    assert memory.stats().documents == 2
    await block.aput([ChatMessage(role="assistant", content="first word")])
    assert memory.stats().documents == 3


async def test_nothing_to_go_by_recalls_nothing(memory):
    block = MSAMemoryBlock(memory, across_sessions=True)
    assert await block.aget() == ""
    assert await block.aget([ChatMessage(role="user", content="violin")]) == ""  # an empty memory
    await block.aput(turn("violin"))
    assert await block.aget([ChatMessage(role="assistant", content="violin")]) == ""


async def test_a_question_longer_than_a_window_is_cut(memory):
    block = MSAMemoryBlock(memory, across_sessions=True)
    await block.aput(turn("violin"))
    pasted = "x" * 10_000 + about("violin")
    assert "is noted" in await block.aget([ChatMessage(role="user", content=pasted)])


async def test_truncation_drops_the_worst_fits_first(memory):
    block = MSAMemoryBlock(memory, priority=1)
    content = "best\n\nsecond\n\nworst"
    assert await block.atruncate(content, 1) == "best\n\nsecond"
    assert await block.atruncate(content, memory.count_tokens("worst") + 1) == "best"
    assert await block.atruncate(content, 1000) is None


async def test_short_term_memory_can_be_kept_out(memory):
    block = MSAMemoryBlock(memory, accept_short_term_memory=False)
    await filled(block)
    assert memory.stats().documents == 0


@pytest.mark.parametrize("blocks", [0, 1])
async def test_an_agent_remembers(memory, other_llm, blocks):
    await MSAMemoryBlock(memory).aput(turn("violin"), session_id="s")
    other_llm.reply = "Thought: I can answer without using any more tools.\nAnswer: yes"
    # ReActAgent throws the first system message away, which is where blocks go otherwise.
    kept = [MSAMemoryBlock(memory)] if blocks else []
    chat = Memory.from_defaults(session_id="s", token_limit=2000, memory_blocks=kept, insert_method=InsertMethod.USER)
    agent = ReActAgent(llm=other_llm, tools=[], streaming=False)
    await agent.run("What of the violin?", memory=chat)
    assert ("The violin is noted." in other_llm.prompts[0]) == bool(blocks)
