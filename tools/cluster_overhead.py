"""What a cluster adds to a question, and where it goes: the same documents in one process and in two actors.

python tools/cluster_overhead.py --documents 2000 --questions 200

A random model of two routing layers makes keys of 384 numbers, as wide as the default's. Every question is asked in one
process, in the cluster, and of each shard's bank opened in this process, in turns, so that whatever else the machine
does meets all of them; between them goes a call of Ray's that does nothing. Rankings are compared. `search` is routing
alone (one round trip), `retrieve` includes encoding the question and reading the hits (two round trips). Times are the
wall's; below them is the processor time that one search and one empty call take, by process.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import psutil
import ray
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from msa_plugin.bench.scoring import percentiles
from msa_plugin.cluster.manifest import shard_folder
from msa_plugin.cluster.serialization import flat
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter, tiny_backbone

WORDS = ("lighthouse", "bee", "glacier", "violin", "harbour", "compiler", "saffron", "meteor", "river", "copper")
WARM_UP = 5  # questions
PARTS = ("send", "wait", "merge")


class Watched:
    """The calls of a cluster's shards, with the time at which each was sent or answered."""

    def __init__(self, actors):
        self._actors, self.sent, self.answered = actors, 0.0, 0.0

    def __getattr__(self, name):
        return getattr(self._actors, name)

    def call(self, *arguments):
        reply = self._actors.call(*arguments)
        self.sent = time.perf_counter()
        return reply

    def result(self, *arguments):
        answer = self._actors.result(*arguments)
        self.answered = time.perf_counter()
        return answer


def text(number):
    return " ".join(WORDS[number // 10**place % 10] for place in range(4)) + f", text {number}"


def searched(memory, asked, k):
    return memory.engine.search.ranked(asked, k, memory.engine.bank.select("default"), None)


def nothing(memory):
    ray.get([actor.__ray_ready__.remote() for actor in memory.engine.bank.shards._running])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("-k", type=int, default=10)
    told = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 else, unlike the one process beside them
    backbone = tiny_backbone()
    options = {"model": backbone, "adapter": tiny_adapter(backbone, head_dim=192)}
    cluster = {"shards": told.shards, "start_timeout": 900, "timeout": 900}
    documents = [{"id": str(n), "text": text(n)} for n in range(told.documents)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        one = stack.enter_context(LatentMemory.open(folder / "one", **options))
        many = stack.enter_context(LatentMemory.open(folder / "many", cluster=cluster, **options))
        one.add(documents)
        many.add(documents)
        alone = [
            stack.enter_context(LatentMemory.open(shard_folder(folder / "many", shard), read_only=True, **options))
            for shard in range(told.shards)
        ]
        say(f"{told.documents} documents, {told.questions} questions, k {told.k}; ms: 5th percentile, median, 95th")
        search(told, one, many, alone)
        retrieve(told, one, many)
        by_process(told, many)
        travels(many, told.k)


def search(told, one, many, alone):
    shards = many.engine.bank.shards
    shards._launcher = watched = Watched(shards._launcher)
    spent = Spent()
    for question in questions(told):
        asked = one.engine.retriever.vectors([question])
        expected = spent("one process", lambda a=asked: searched(one, a, told.k))
        began = time.perf_counter()
        found = spent(f"{told.shards} actors", lambda a=asked: searched(many, a, told.k))
        stages = (began, watched.sent, watched.answered, time.perf_counter())
        for part, (start, end) in zip(PARTS, pairwise(stages), strict=True):
            spent.note(part, end - start)
        spent("empty call", lambda: nothing(many))
        for shard, memory in enumerate(alone):
            spent(f"shard {shard} here", lambda m=memory, a=asked: searched(m, a, told.k))
        assert found == expected, (question, found, expected)
    shards._launcher = watched._actors
    say("search, one round trip")
    spent.report(told.shards)


def retrieve(told, one, many):
    spent = Spent()
    for question in questions(told):
        expected = spent("one process", lambda q=question: one.retrieve(q, told.k))
        found = spent(f"{told.shards} actors", lambda q=question: many.retrieve(q, told.k))
        assert found == expected, (question, found, expected)
    say("retrieve, two round trips")
    spent.report(told.shards)


def questions(told):
    return [text(7 * number + 3) for number in range(told.questions + WARM_UP)]


class Spent:
    """Milliseconds by name."""

    def __init__(self):
        self.times = {}

    def __call__(self, name, call):
        began = time.perf_counter()
        result = call()
        self.note(name, time.perf_counter() - began)
        return result

    def note(self, name, seconds):
        self.times.setdefault(name, []).append(1000 * seconds)

    def report(self, shards):
        times = {name: spent[WARM_UP:] for name, spent in self.times.items()}
        pairs = zip(times[f"{shards} actors"], times["one process"], strict=True)
        times["added"] = [cluster - alone for cluster, alone in pairs]
        for name, spent in times.items():
            say(f"  {name:14}", *(f"{value:9.2f}" for value in percentiles(spent)))


def by_process(told, many):
    """Processor time of one search and of one empty call."""
    asked = many.engine.retriever.vectors([text(3)])
    for name, call in (("search", lambda: searched(many, asked, told.k)), ("empty call", lambda: nothing(many))):
        before = processor_times()
        for _ in range(told.questions):
            call()
        used = {who: 1000 * (time_ - before.get(who, 0.0)) / told.questions for who, time_ in processor_times().items()}
        say(f"processor time of one {name}, ms:", ", ".join(f"{who} {used[who]:.2f}" for who in sorted(used)))


def processor_times():
    """Seconds so far: of this process, of the actors, of Ray's other processes."""
    times = {"driver": time.process_time(), "actors": 0.0, "Ray's own": 0.0}
    for process in psutil.process_iter(["cmdline", "cpu_times", "pid"]):
        command, used = " ".join(process.info["cmdline"] or ()), process.info["cpu_times"]
        if used is None or process.info["pid"] == os.getpid():
            continue
        if command.startswith("ray::Shard"):
            times["actors"] += used.user + used.system
        elif "/ray/" in command:
            times["Ray's own"] += used.user + used.system
    return times


def travels(memory, k):
    """Bytes of one question's calls, as Ray serialises them."""
    serialize = ray._private.worker.global_worker.get_serialization_context().serialize
    bank = memory.engine.bank
    sent = [bank.select("default").asked.light(), flat(memory.engine.retriever.vectors([text(3)])), k]
    answers = bank.shards.each("ranked", dict.fromkeys(range(bank.shards.count), tuple(sent)))
    numbers = [row[1] for row in answers[0][0]]
    read = bank.shards.each("documents", {0: (numbers,)})[0]
    sizes = [serialize(part).total_bytes for part in (sent, answers[0], numbers, read)]
    say("bytes: question to a shard {}, its answer {}; ordinals to a shard {}, its documents {}".format(*sizes))


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
