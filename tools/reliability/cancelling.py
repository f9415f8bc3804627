"""Cancellation at random moments: async tasks, streams that are left, and Ctrl-C in a child process.

After each the memory must be usable, hold whole calls only, and leave no thread, open file or lock behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

from load import document, opened, question, workplace
from vitals import vitals

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.memory import LatentMemory
from tiny import tiny_backbone

GROUP = 6
LONG = {"max_new_tokens": 60}


def cancelling(times: int, seed: int = 0) -> dict[str, Any]:
    """Call off `times` async calls in this process, and interrupt a tenth as many in children."""
    with workplace() as folder:
        tasks = asyncio.run(_call_off(folder, tiny_backbone(), times, Random(seed)))
    with workplace() as folder:
        interrupted = interrupting(folder, max(1, times // 10), seed)
    return {"what": "cancelling", "seed": seed, "counts": {"tasks": tasks, "interrupted": interrupted}}


def group(number: int, version: int) -> list[dict[str, Any]]:
    """Documents that one call writes, and that must therefore always be seen together."""
    return [document(f"g{number}-{part}", version) for part in range(GROUP)]


def whole(memory: LatentMemory) -> dict[int, int]:
    """Version of each group; raises AssertionError for a group of which only a part, or several versions, are seen."""
    found: dict[int, set[tuple[str, int]]] = {}
    for d in memory.get([*memory.ids()]):
        number, version = int(d.id[1:].split("-")[0]), int(d.metadata["version"])
        assert d.text == document(d.id, version)["text"]
        found.setdefault(number, set()).add((d.id, version))
    for number, members in found.items():
        assert len(members) == GROUP and len({v for _, v in members}) == 1, (number, members)
    return {number: next(iter(members))[1] for number, members in found.items()}


async def _call_off(folder: Path, backbone: Backbone, times: int, rng: Random) -> dict[str, int]:
    counts: Counter[str] = Counter()
    with opened(folder, backbone) as memory:
        for number in range(4):
            memory.add(group(number, 0))
        longest = {name: await _seconds(make(memory, rng, 0)) for name, make in CALLS.items()}
        await asyncio.gather(*(memory.aretrieve("warm") for _ in range(40)))  # the pool has all its threads now
        before = None
        for time_ in range(times):
            if time_ == times // 3:  # SQLite keeps the descriptors of connections closed beside others, to use again
                before = vitals(folder)
            name = rng.choice([*CALLS])
            task = asyncio.ensure_future(CALLS[name](memory, rng, 1 + time_))
            await asyncio.sleep(rng.random() * 1.2 * longest[name])
            counts[f"{name} {'cancelled' if task.cancel() else 'done'}"] += 1
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None, task.exception()
            whole(memory)
            with opened(folder, backbone, lock_timeout=0) as other:  # nobody holds the lock any more
                other.add(group(rng.randrange(4), 1_000_000 + time_))
            memory.refresh()
        assert memory.verify().ok
        after = vitals(folder)
    assert before
    assert (after.threads, after.temporary_files) == (before.threads, before.temporary_files), (before, after)
    assert after.open_files <= before.open_files + 2, (before, after)
    return dict(counts)


async def _seconds(call: Coroutine[Any, Any, object]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began


async def _leave_stream(memory: LatentMemory, rng: Random) -> None:
    stream = memory.astream(question(rng), **LONG)
    async for _ in stream:
        if rng.random() < 0.05:
            await stream.aclose()
            return


CALLS: dict[str, Callable[[LatentMemory, Random, int], Coroutine[Any, Any, object]]] = {
    "add": lambda memory, rng, version: memory.aadd(group(rng.randrange(4), version)),
    "add many": lambda memory, rng, version: memory.aadd([d for n in range(4) for d in group(n, version)]),
    "ask": lambda memory, rng, version: memory.aask([question(rng) for _ in range(3)], **LONG),
    "stream": lambda memory, rng, version: _leave_stream(memory, rng),
    "compact": lambda memory, rng, version: memory.acompact(),
    "retrieve": lambda memory, rng, version: memory.aretrieve([question(rng)] * 5, 3),
}


def interrupting(folder: Path, times: int, seed: int) -> dict[str, int]:
    """Send SIGINT `times` to a child that writes, asks and compacts, at random moments; it checks itself each time."""
    rng = Random(seed)
    code = f"import sys; sys.path[:0] = {sys.path!r}; import cancelling; cancelling.child(sys.argv[1], {seed})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert child.stdout and child.stdin
    counts: Counter[str] = Counter()
    try:
        for _ in range(times):
            assert child.stdout.readline() == "begin\n"
            time.sleep(rng.random() * 0.3)
            child.send_signal(signal.SIGINT)
            said = child.stdout.readline().strip()
            assert said.startswith("interrupted "), said
            counts[said.removeprefix("interrupted ")] += 1
        child.stdin.close()
    finally:
        child.kill() if child.poll() is None and sys.exc_info()[0] else None
        child.wait(120)
    assert child.returncode == 0
    return dict(counts)


def child(folder: str, seed: int) -> None:
    """Work until interrupted, check, and begin again, until standard input ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
    rng, backbone, version = Random(seed), tiny_backbone(), 0
    with opened(Path(folder), backbone) as memory:
        for number in range(4):
            memory.add(group(number, 0))
        before = None
        while True:
            during = "nothing"
            try:
                print("begin", flush=True)  # noqa: T201
                while True:
                    version += 1
                    during = rng.choice(["add", "ask", "compact"])
                    if during == "add":
                        memory.add(group(rng.randrange(4), version))
                    elif during == "ask":
                        memory.ask(question(rng), max_new_tokens=8)
                    else:
                        memory.compact()
            except KeyboardInterrupt:
                pass
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one at a time
            before = _check_child(memory, Path(folder), backbone, version, before)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("interrupted", during, flush=True)  # noqa: T201
            if not _more():
                return


def _check_child(memory: LatentMemory, folder: Path, backbone: Backbone, version: int, before: Any) -> Any:
    whole(memory)
    with opened(folder, backbone, lock_timeout=0) as other:
        other.add(group(0, 1_000_000 + version))
    memory.add(group(1, 2_000_000 + version))
    assert memory.verify().ok
    after = vitals(folder)
    if before is not None:
        assert after.threads == before.threads and after.open_files <= before.open_files + 2, (before, after)
    return before or after


def _more() -> bool:
    """Whether the parent still listens; it closes our standard input when it has had enough."""
    import select

    ready, _, _ = select.select([sys.stdin], [], [], 0.05)
    return not ready
