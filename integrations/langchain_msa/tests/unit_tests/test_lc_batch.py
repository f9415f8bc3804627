"""Batches of questions to memory share forwards, and otherwise are what single calls are."""

from __future__ import annotations

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import ChatPromptTemplate

from facade import count_runs
from langchain_msa import ChatMSA
from msa_plugin.errors import InvalidQueryError

ASKED = ["the glacier?", "violins", "the glacier?", "what of the saffron and of the harbour?"]


class Heard(BaseCallbackHandler):
    def __init__(self):
        self.told = []

    def on_custom_event(self, name, data, **kwargs):
        self.told.append((name, data))


def read(message):
    sources = message.response_metadata["sources"]
    return [(s["id"], s["hop"]) for s in sources], [s["score"] for s in sources]


async def test_a_batch_is_its_calls_with_fewer_forwards(filled, llm, monkeypatch):
    ran = count_runs(monkeypatch)
    single, heard = [], [Heard() for _ in ASKED]
    for question, listener in zip(ASKED, heard, strict=True):
        single.append(llm.invoke(question, {"callbacks": [listener]}))
    alone = len(ran)
    for batch in ("batch", "abatch"):
        ran.clear()
        listeners = [Heard() for _ in ASKED]
        configs = [{"callbacks": [listener]} for listener in listeners]
        found = llm.batch(ASKED, configs) if batch == "batch" else await llm.abatch(ASKED, configs)
        assert [m.content for m in found] == [m.content for m in single]
        for one, other in zip(found, single, strict=True):
            assert one.usage_metadata == other.usage_metadata
            assert read(one)[0] == read(other)[0] and read(one)[1] == pytest.approx(read(other)[1])
        assert [[name for name, _ in h.told] for h in listeners] == [[name for name, _ in h.told] for h in heard]
        assert len(ran) < 0.6 * alone, "forwards are shared"


def test_a_chain_of_prompt_and_model_shares_them_too(filled, llm, monkeypatch):
    chain = ChatPromptTemplate.from_template("{topic}?") | llm
    ran = count_runs(monkeypatch)
    expected = [chain.invoke({"topic": t}).content for t in ("violin", "meteor", "saffron")]
    alone = len(ran)
    ran.clear()
    assert [m.content for m in chain.batch([{"topic": t} for t in ("violin", "meteor", "saffron")])] == expected
    assert len(ran) < 0.6 * alone
    ran.clear()
    assert [m.content for m in chain.batch([{"topic": "violin"}] * 2, {"max_concurrency": 1})] == expected[:1] * 2
    assert len(ran) > 0.6 * alone * 2 / 3, "who wants one at a time gets one at a time"


def test_each_has_its_own_error(filled, llm):
    good, bad, other = llm.batch(["violin", " ", "meteor"], return_exceptions=True)
    assert isinstance(bad, InvalidQueryError) and good.content == llm.invoke("violin").content
    assert other.content == llm.invoke("meteor").content
    too_long = "x" * (filled.config.window * 2)
    good, bad = llm.batch(["violin", too_long], return_exceptions=True)
    assert isinstance(bad, InvalidQueryError) and good.content == llm.invoke("violin").content
    with pytest.raises(InvalidQueryError):
        llm.batch(["violin", " "])
    assert llm.batch([]) == []


def test_options_and_documents_hold_for_all(filled, llm):
    found = llm.batch(["why?", "how?"], documents=["meteor"], max_tokens=3)
    assert [[s["id"] for s in m.response_metadata["sources"]] for m in found] == [["meteor"]] * 2
    assert all(m.usage_metadata["output_tokens"] <= 3 for m in found)
    plain = ChatMSA(filled, mode="chat", temperature=1.5, seed=3, max_tokens=5)
    assert [m.content for m in plain.batch(["why?", "how?"])] == [plain.invoke(q).content for q in ("why?", "how?")]
