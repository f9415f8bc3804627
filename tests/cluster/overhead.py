"""What a cluster adds to a question: the same documents in one process and in two actors, asked in turns.

python tests/cluster/overhead.py --documents 2000 --questions 200

A random model of two routing layers makes keys of 384 numbers, as wide as the default's. Every question is asked in one
process and in the cluster, one after the other, so that whatever else the machine does meets both. Rankings are
compared. `search` is routing alone (one round trip), `retrieve` includes encoding the question and reading the hits
(two round trips). Times are the wall's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msa_plugin.bench.timing import percentiles
from msa_plugin.cluster.wire import pack
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter, tiny_backbone

WORDS = ("lighthouse", "bee", "glacier", "violin", "harbour", "compiler", "saffron", "meteor", "river", "copper")


def text(number):
    return " ".join(WORDS[number // 10**place % 10] for place in range(4)) + f", text {number}"


def timed(call):
    began = time.perf_counter()
    result = call()
    return result, 1000 * (time.perf_counter() - began)


def searched(memory, asked, k):
    return memory.engine.search.ranked(asked, k, memory.engine.bank.select("default"), None)


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
    adapter = tiny_adapter(backbone, head_dim=192)
    documents = [{"id": str(n), "text": text(n)} for n in range(told.documents)]
    with tempfile.TemporaryDirectory() as folder:
        options = {"model": backbone, "adapter": adapter}
        with (
            LatentMemory.open(Path(folder) / "one", **options) as one,
            LatentMemory.open(
                Path(folder) / "many", cluster={"shards": told.shards, "start_timeout": 900, "timeout": 900}, **options
            ) as many,
        ):
            one.add(documents)
            many.add(documents)
            report(told, {"one process": one, f"{told.shards} actors": many})


def report(told, memories):
    times = {name: {"search": [], "retrieve": []} for name in memories}
    for number in range(told.questions + 5):  # the first ones warm up
        question = text(7 * number + 3)
        for stage in ("search", "retrieve"):
            found = []
            for name, memory in memories.items():
                if stage == "search":
                    asked = memory.engine._vectors([question])
                    rows, spent = timed(lambda m=memory, a=asked: searched(m, a, told.k))
                    found.append([[(r.ordinal, r.score) for r in row] for row in rows])
                else:
                    hits, spent = timed(lambda m=memory, q=question: m.retrieve(q, told.k))
                    found.append([(h.id, h.score) for h in hits])
                if number >= 5:
                    times[name][stage].append(spent)
            assert found[0] == found[1], (question, found)
    say(f"{told.documents} documents, {told.questions} questions, k {told.k}; ms: 5th percentile, median, 95th")
    for name, stages in times.items():
        for stage, spent in stages.items():
            say(f"{name:12} {stage:9}", *(f"{value:9.2f}" for value in percentiles(spent)))
    for stage in ("search", "retrieve"):
        first, second = (percentiles(stages[stage]) for stages in times.values())
        say(f"added        {stage:9}", *(f"{b - a:9.2f}" for a, b in zip(first, second, strict=True)))
    travels(list(memories.values())[1], told.k)


def travels(memory, k):
    """Bytes of one question's calls, as Ray serialises them."""
    from ray import cloudpickle

    bank = memory.engine.bank
    sent = (bank.select("default").asked, *map(pack, memory.engine._vectors([text(3)])), k)
    answers = bank.shards.each("ranked", dict.fromkeys(range(bank.shards.count), sent))
    numbers = [r.ordinal for r in answers[0][0]]
    read = bank.shards.each("documents", {0: (numbers,)})[0]
    sizes = [len(cloudpickle.dumps(part)) for part in (sent, answers[0], numbers, read)]
    say("bytes: question to a shard {}, its answer {}; ordinals to a shard {}, its documents {}".format(*sizes))


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")


if __name__ == "__main__":
    main()
