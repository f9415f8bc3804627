"""The async twins: the same results, an event loop that keeps turning, and streams that end when they are left."""

import asyncio
import inspect
import threading

import pytest

from facade import about, count_runs
from msa_plugin.errors import EmptyMemoryError, InvalidDocumentError, InvalidQueryError, UnknownDocumentError
from msa_plugin.memory import LatentMemory

TWINS = sorted(name for name in dir(LatentMemory) if name.startswith("a") and hasattr(LatentMemory, name[1:]))


def run(coroutine):
    """Run to the end, or fail: nothing here may hang."""
    return asyncio.run(asyncio.wait_for(coroutine, 120))


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_takes_what_its_namesake_takes(twin):
    sync, parameters = (inspect.signature(getattr(LatentMemory, name)).parameters for name in (twin[1:], twin))
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert set(parameters) - {"options"} <= set(sync)
    assert open_ended or set(parameters) == set(sync)


def test_twins_do_what_their_namesakes_do(full):
    async def calls():
        assert (await full.aadd(["new"], on_invalid="skip")).added == full.add(["new"]).unchanged
        assert (await full.aupdate({"id": "violin", "text": about("viola")})).updated == ("violin",)
        assert (await full.adelete(["meteor", "nobody"])).missing == ("nobody",)
        assert await full.aretrieve("violin", 3) == full.retrieve("violin", 3)
        assert await full.aretrieve(["violin", "?"], filter={"even": True}) == full.retrieve(
            ["violin", "?"], filter={"even": True}
        )
        assert (await full.aask("violin", max_new_tokens=4)).text == full.ask("violin", max_new_tokens=4).text
        await full.asnapshot("s")
        await full.acompact()
        assert (await full.averify()) == full.verify()
        assert full.stats().snapshots == ("s",)

    run(calls())


def test_errors_come_through(memory):
    async def calls():
        with pytest.raises(EmptyMemoryError):
            await memory.aask("why")
        with pytest.raises(EmptyMemoryError):
            await anext(memory.astream("why"))
        with pytest.raises(InvalidDocumentError):
            await memory.aadd("")
        with pytest.raises(UnknownDocumentError):
            await memory.aupdate({"id": "a", "text": "b"})
        with pytest.raises(InvalidQueryError):
            await memory.aretrieve("")

    run(calls())


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.aadd("something new"),
        lambda m: m.aretrieve("violin"),
        lambda m: m.aask("violin", max_new_tokens=1),
        lambda m: anext(m.astream("violin", max_new_tokens=1)),
    ],
    ids=["add", "retrieve", "ask", "stream"],
)
def test_the_loop_turns_while_the_backbone_works(full, monkeypatch, call):
    ticked = threading.Event()
    waited = []
    # Every forward waits for the loop to tick: a loop that was blocked would never set the event.
    count_runs(monkeypatch, also=lambda: (ticked.clear(), waited.append(ticked.wait(20))))

    async def tick():
        while True:
            ticked.set()
            await asyncio.sleep(0.001)

    async def both():
        ticking = asyncio.create_task(tick())
        await call(full)
        ticking.cancel()

    run(both())
    assert waited and all(waited)


@pytest.mark.parametrize(
    ("twin", "arguments"),
    [("aupdate", ("x",)), ("adelete", ("x",)), ("acompact", ()), ("asnapshot", ("s",)), ("averify", ())],
)
def test_slow_calls_run_elsewhere(memory, monkeypatch, twin, arguments):
    threads = []
    monkeypatch.setattr(LatentMemory, twin[1:], lambda *_: threads.append(threading.current_thread()))
    run(getattr(memory, twin)(*arguments))
    assert threads and threads[0] is not threading.main_thread()


def test_pieces_add_up(full):
    async def pieces():
        return [piece async for piece in full.astream("violin", max_new_tokens=12)]

    got = run(pieces())
    assert len(got) > 1 and "".join(got) == full.ask("violin", max_new_tokens=12).text


def test_leaving_a_stream_ends_the_decoding(full, monkeypatch):
    runs, streams, stream_of = count_runs(monkeypatch), [], LatentMemory.stream
    # A reference of our own, so that it is not the garbage collector that ends the stream.
    monkeypatch.setattr(LatentMemory, "stream", lambda *a, **k: streams.append(stream_of(*a, **k)) or streams[-1])

    async def first_piece():
        stream = full.astream("violin", max_new_tokens=200)
        async for _ in stream:
            break
        await stream.aclose()
        return len(runs)

    before = run(first_piece())
    assert list(streams[0]) == [] and len(runs) == before < 50
    assert full.ask("violin", max_new_tokens=2).text


def test_cancelling_a_stream_ends_the_decoding(full, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    runs = count_runs(monkeypatch, also=lambda: (started.set(), go_on.wait(20)))

    async def consume():
        async for _ in full.astream("violin", max_new_tokens=200):
            pass

    async def cancelled_in_the_middle_of_a_forward():
        task = asyncio.create_task(consume())
        while not started.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancelled_in_the_middle_of_a_forward())
    ended_at = len(runs)
    assert ended_at < 50
    assert full.ask("violin", max_new_tokens=2).text
