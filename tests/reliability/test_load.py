"""Load in small: the same functions as the long runs, and what they found."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cancelling import cancelling, group, whole
from load import batch, growing, sustained
from vitals import Vitals, judged, supported

from facade import PER_LAYER, count_runs, opened, topics
from msa_plugin.bank.bank import MemoryBank
from tiny import tiny_adapter

needs_proc = pytest.mark.skipif(not supported(), reason="reads Linux's /proc")


@needs_proc
@pytest.mark.slow
def test_sustained_use():
    figures = sustained(0, documents=40, cycles=4)
    counts = {"open_files", "threads", "temporary_files"}
    assert figures["counts"]["answers_in_another_thread"] and not counts & set(figures["leaks"]), figures


@needs_proc
def test_a_growing_memory():
    first, last = growing(300, stops=2)["sizes"]
    assert last["documents"] == 3 * first["documents"] and last["open_files"] <= first["open_files"] + 2


def test_a_batch_is_answered_like_its_questions():
    assert batch(40, documents=30)["counts"]["different"] == 0


@needs_proc
@pytest.mark.slow
def test_cancelling_and_interrupting():
    counts = cancelling(12)["counts"]
    assert sum(counts["tasks"].values()) == 12 and sum(counts["interrupted"].values()) == 1


@pytest.mark.parametrize(("grows", "noise", "leak"), [(0, 3, False), (1, 0, True), (1, 30, False), (-1, 0, False)])
def test_what_counts_as_a_leak(grows, noise, leak):
    samples = [Vitals(n, 10**8, 10 + grows * (n // 5) + noise * (n % 2), 2, 4, 0, 10**6) for n in range(30)]
    assert (judged(samples)["leaks"] == ["open_files"]) is leak


@pytest.mark.parametrize("routing", [{}, PER_LAYER], ids=["shared", "per_layer"])
@pytest.mark.parametrize("question", ["violin", ["violin"] * 37], ids=["one", "batch"])
def test_a_batch_takes_bounded_memory(tmp_path, backbone, monkeypatch, routing, question):
    adapter = tiny_adapter(backbone, **routing)
    with opened(tmp_path, backbone, adapter, batch_questions=4, batch_tokens=64) as memory:
        memory.add(topics())
        alone = memory.ask("violin", max_new_tokens=2).text
        largest = 4 * _largest_forward(memory, monkeypatch)
        runs = count_runs(monkeypatch)
        answers = memory.ask(question, max_new_tokens=2)
        hits = memory.retrieve(question, 2)
    assert max(runs) <= largest
    if isinstance(question, list):
        assert {a.text for a in answers} == {alone} and len(answers) == len(hits) == 37
        assert all(row == hits[0] for row in hits)


def _largest_forward(memory, monkeypatch):
    """Tokens of the largest forward that one question takes."""
    with monkeypatch.context() as patch:
        runs = count_runs(patch)
        memory.ask("violin", max_new_tokens=1)
    return max(runs)


@pytest.mark.parametrize("routing", [{}, {"read_latent": True}, PER_LAYER], ids=["text", "latent", "per_layer"])
@pytest.mark.parametrize("events", range(1, 6))
def test_a_question_keeps_its_moment(tmp_path, backbone, routing, events):
    """Whatever happens to the documents between two steps of an answer, it is read from those that it began with."""
    with opened(tmp_path, backbone, tiny_adapter(backbone, **routing)) as memory:
        memory.add(topics())
        expected = memory.ask("the violin", max_new_tokens=4)
        stream = memory.stream("the violin", max_new_tokens=4)
        told = stream.events()
        for _ in range(events):
            next(told)
        memory.delete([*memory.ids()])
        memory.compact()
        for _ in told:
            pass
        assert stream.answer.text == expected.text
        assert [s.id for s in stream.answer.sources] == [s.id for s in expected.sources]
        assert not [*memory.ids()]


def test_threads_and_tasks_share_a_memory_that_changes(tmp_path, backbone):
    """Every answer is of some committed state: its sources are whole documents, its batch sees one version a group."""
    with opened(tmp_path, backbone) as memory:
        for number in range(4):
            memory.add(group(number, 0))
        done, asked = threading.Event(), []

        def watch(call):
            while not done.is_set():
                asked.append(call())

        def ask():
            sources = memory.ask(["violin loom", "canal"], max_new_tokens=2)[0].sources
            assert all(s.text.startswith(f"{s.id} v{s.metadata['version']}:") for s in sources)

        def ask_async():
            async def several():
                return await asyncio.gather(*(memory.aretrieve("glacier", 24) for _ in range(3)))

            for hits in asyncio.run(several()):
                versions = {(h.id.split("-")[0], h.metadata["version"]) for h in hits}
                assert len(hits) == 24 and len(versions) == 4, "six documents each of four groups, all of one version"

        with ThreadPoolExecutor(3) as pool:
            watching = [pool.submit(watch, call) for call in (ask, ask_async, lambda: whole(memory))]
            try:
                for version in range(1, 13):
                    memory.add(group(version % 4, version))
                    if version % 3 == 0:
                        memory.compact()
            finally:
                done.set()
        assert [one.result() for one in watching] == [None] * 3 and len(asked) >= 3


def test_chosen_documents_and_the_filter_are_of_one_moment(tmp_path, backbone, monkeypatch):
    with opened(tmp_path, backbone) as memory:
        memory.add(topics())
        select = MemoryBank.select

        def slow(bank, *args, **kwargs):
            selection = select(bank, *args, **kwargs)
            update = threading.Thread(target=memory.add, args=({"id": "violin", "text": "changed"},))
            update.start()
            update.join(0.5)  # it must not get in between
            return selection

        monkeypatch.setattr(MemoryBank, "select", slow)
        assert memory.ask("?", documents=["violin"], max_new_tokens=1).sources[0].id == "violin"


@pytest.mark.parametrize("call", ["add", "ask"])
def test_a_cancelled_call_stops(tmp_path, backbone, monkeypatch, call):
    with opened(tmp_path, backbone, batch_tokens=64, lock_timeout=0) as memory:
        memory.add(topics())
        texts = [f"text number {n}" for n in range(400)]
        calls = {"add": lambda: memory.aadd(texts), "ask": lambda: memory.aask(texts, max_new_tokens=50)}
        started = threading.Event()
        runs = count_runs(monkeypatch, also=started.set)

        async def cancelled():
            task = asyncio.create_task(calls[call]())
            while not started.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return len(runs)

        at = asyncio.run(cancelled())
        with opened(tmp_path, backbone, lock_timeout=0) as other:
            assert other.add("the lock is free").added
        assert at < 60 and len([*memory.ids()]) == len(topics()) + 1, "nothing of it was stored, or goes on"


def test_a_call_that_waits_for_the_lock_can_be_cancelled(tmp_path, backbone):
    with opened(tmp_path, backbone, lock_timeout=3600) as memory, opened(tmp_path, backbone) as other:

        async def wait():
            with other.engine.bank.writing():
                await asyncio.wait_for(memory.aadd("waits for an hour"), 0.3)

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(wait(), 60))
        assert memory.add("free").added
