"""Questions of several threads: answered in the order in which they came, with bounded waits; and seconds add up."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from facade import PER_LAYER, count_runs, opened, topics
from msa_plugin.backbone import turns
from msa_plugin.errors import BusyError
from tiny import tiny_adapter

CHAT = [{"role": "user", "content": "Tell me of violins."}]
# Random models like to say nothing when they are greedy.
TALKING = {"temperature": 1.5, "seed": 3, "max_new_tokens": 12}


@pytest.fixture
def memory(tmp_path, backbone):
    with opened(tmp_path, backbone, tiny_adapter(backbone, beside=True)) as memory:
        memory.add(topics())
        memory.ask("violin", max_new_tokens=1)  # what is worked out once
        yield memory


def test_eight_threads_are_answered_one_after_another(memory, monkeypatch):
    monkeypatch.setattr(turns, "KEPT", 10.0)  # however slow the machine is
    alone = memory.ask("violin", **TALKING)
    ran, done = [], []
    count_runs(monkeypatch, lambda: ran.append(threading.get_ident()))

    def ask(number):
        answer = memory.ask("violin", **TALKING)
        done.append((time.perf_counter(), answer.trace.seconds["queue"]))
        return answer.text

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [alone.text] * 8
    assert sum(a != b for a, b in pairwise(ran)) == 7, "no forward comes between those of another"
    waits = [wait for _, wait in sorted(done)]
    assert waits == sorted(waits) and waits[0] < waits[-1]


def test_a_place_in_the_queue_is_that_of_the_arrival():
    line, order = turns.Turns(), []
    with line.turn(None) as first, line.turn(None) as second, line.turn(None) as third:
        first.take()

        def later(turn, name):
            turn.take()
            order.append(name)
            turn.lend()

        with ThreadPoolExecutor(2) as pool:
            for waiting in ((third, "third"), (second, "second")):
                pool.submit(later, *waiting)
            time.sleep(0.1)
            assert order == []
            first.lend()
        assert order == ["second", "third"]


def test_a_stream_whose_reader_is_busy_lets_others_go_on(memory):
    stream = memory.stream("violin", **TALKING)
    pieces = [next(stream)]
    inner = memory.ask("glacier", **TALKING)  # in the same thread: nobody else would ever end the wait
    assert inner.text and inner.trace.seconds["queue"] >= turns.KEPT / 2
    pieces += stream
    assert "".join(pieces) == stream.answer.text == memory.ask("violin", **TALKING).text
    abandoned = memory.stream("violin", **TALKING)
    next(abandoned)
    assert memory.ask("violin", **TALKING).text, "one that is never read to its end holds nobody up"


def test_waiting_is_bounded(tmp_path, backbone, memory):
    with opened(tmp_path / "other", backbone, queue_timeout=0.1) as other, backbone.turns.turn(None) as turn:
        other.add(topics())  # encoding does not wait
        turn.take()
        for call in (
            lambda: other.ask("violin"),
            lambda: next(other.stream("violin")),
            lambda: other.ask("violin", documents=["violin"]),
            lambda: other.chat(CHAT),
        ):
            with pytest.raises(BusyError, match="queue_timeout"):
                call()
        assert other.retrieve("violin", 1), "nor does a search"
        turn.lend()
        assert other.ask("violin", **TALKING).text


async def test_waiting_can_be_called_off(memory):
    with memory.engine.backbone.turns.turn(None) as turn:
        turn.take()
        waiting = [asyncio.create_task(memory.aask("violin")), asyncio.create_task(memory.achat(CHAT))]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        for ended in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20):
            assert isinstance(ended, asyncio.CancelledError)
    assert (await memory.aask("violin", **TALKING)).text, "and leaves no place behind"


def measured(call):
    began = time.perf_counter()
    answer = call()
    return answer.trace.seconds, time.perf_counter() - began


@pytest.mark.parametrize("kind", ["ask", "chosen", "filter", "chat", "stream", "batch"])
def test_seconds_add_up(memory, kind):
    slept = []

    def stream():
        pieces = memory.stream("violin", **TALKING)
        for _ in pieces:
            began = time.perf_counter()
            time.sleep(0.01)
            slept.append(time.perf_counter() - began)
        return pieces.answer

    calls = {
        "ask": lambda: memory.ask("violin", **TALKING),
        "chosen": lambda: memory.ask("violin", documents=["violin", "meteor"], **TALKING),
        "filter": lambda: memory.ask("violin", filter=lambda metadata: metadata["even"] is False, **TALKING),
        "chat": lambda: memory.chat(CHAT, **TALKING),
        "stream": stream,
        "batch": lambda: memory.ask(["violin", "glacier", "meteor"], **TALKING)[-1],
    }
    seconds, wall = measured(calls[kind])
    assert {"queue", "prefill", "decode", "other"} <= seconds.keys() and min(seconds.values()) >= 0
    assert sum(seconds.values()) <= wall - sum(slept) + 1e-6, "what a reader does with a piece is not the answer's"
    assert sum(seconds.values()) / (wall - sum(slept)) > 0.7


def test_seconds_add_up_where_layers_select(tmp_path, backbone):
    adapter = tiny_adapter(backbone, read_latent=True, **PER_LAYER)
    with opened(tmp_path, backbone, adapter) as memory:
        memory.add(topics())
        memory.ask("violin", max_new_tokens=1)
        seconds, wall = measured(lambda: memory.ask("violin", **TALKING))
        assert 0.7 < sum(seconds.values()) / wall <= 1.0


def test_waiting_is_a_stage_of_its_own(memory):
    with memory.engine.backbone.turns.turn(None) as turn:
        turn.take()
        threading.Timer(0.3, turn.lend).start()
        seconds, wall = measured(lambda: memory.ask("violin", **TALKING))
    assert 0.2 < seconds["queue"] < sum(seconds.values()) <= wall


def test_questions_of_a_batch_wait_for_those_before_them(tmp_path, backbone):
    with opened(tmp_path, backbone, batch_questions=1) as memory:
        memory.add(topics())
        first, _, last = memory.ask(["violin", "glacier", "meteor"], **TALKING)
        assert last.trace.seconds["queue"] >= sum(first.trace.seconds.values()) - first.trace.seconds["queue"]
