"""What another tenant's documents cost a tenant: time and work of its questions, and whether time tells who has an id.

python tools/reliability/timing.py --mine 200 --others 0,2000,20000

One bank for each number of others, both tenants' documents mixed, then compacted into segments that they share (the
worst case). All times are medians of interleaved repeats of one run; only their ratios mean something elsewhere. No
backbone: a question is its routing vector, so a ratio here is larger than one of whole answers.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import places  # noqa: F401
import torch
from bank_builder import FINGERPRINT

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.config import RoutingConfig
from msa_plugin.retrieval.scorer import RoutedDocuments, _ChunkScorer, route
from msa_plugin.types import Document, EncodedDocument

WIDTH, CHUNKS, PORTION = 384, 4, 500
CONFIG = RoutingConfig(layers=(0,), heads=1, kv_heads=1, head_dim=WIDTH, pooling=32, query_reduce="pooled")


def encoded(name: str, generator: torch.Generator) -> EncodedDocument:
    """A document with random routing keys."""
    keys = torch.nn.functional.normalize(torch.randn(CHUNKS, WIDTH, generator=generator), dim=1).half()
    return EncodedDocument(Document(name, f"text of {name}", "", {"n": 1}), 32 * CHUNKS, {"0": keys}, {})


def fill(bank: MemoryBank, mine: int, others: int, seed: int) -> None:
    """`mine` documents of tenant a, spread evenly among `others` of tenant b, in shared segments.

    A question about a's documents has the same answer whatever the `others`.
    """
    own, foreign = (torch.Generator().manual_seed(seed + n) for n in (0, 1))
    parts = max(1, others // PORTION)
    for part in range(parts):
        if ours := range(part * mine // parts, (part + 1) * mine // parts):
            bank.commit([encoded(f"a{n}", own) for n in ours], "a")
        if theirs := range(part * others // parts, (part + 1) * others // parts):
            bank.commit([encoded(f"b{n}", foreign) for n in theirs], "b")
    bank.compact()


def ask(bank: MemoryBank, k: int = 10, seed: int = 0) -> RoutedDocuments:
    """Route one question among tenant a's documents."""
    vector = torch.randn(1, 1, 1, WIDTH, generator=torch.Generator().manual_seed(seed))
    return route(vector, torch.ones(1, 1, dtype=torch.bool), bank.select("a").key_blocks("0"), k, CONFIG)


def first(bank: MemoryBank) -> RoutedDocuments:
    """The first question after somebody changed the bank."""
    bank.refresh()
    return ask(bank)


def rows_read(action: Callable[[], object]) -> int:
    """Routing keys that the search reads during `action`."""
    read = [0]
    load = _ChunkScorer._load

    def counted(self: _ChunkScorer, rows: torch.Tensor) -> torch.Tensor:
        read[0] += len(rows)
        return load(self, rows)

    _ChunkScorer._load = counted  # type: ignore[method-assign]
    try:
        action()
    finally:
        _ChunkScorer._load = load  # type: ignore[method-assign]
    return read[0]


def timed(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each action; they take turns in an order that is drawn anew, since what came before matters."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    turns, order = list(actions), random.Random(0)
    for _ in range(repeats):
        order.shuffle(turns)
        for name in turns:
            began = time.perf_counter()
            actions[name]()
            taken[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in taken.items()}


def run(mine: int, others: Sequence[int], repeats: int, seed: int) -> dict[str, Any]:
    """The figures; `others` begins with the number that ratios are taken to."""
    with tempfile.TemporaryDirectory() as parent, ExitStack() as stack:
        banks = {}
        for count in others:
            bank = stack.enter_context(MemoryBank.open(Path(parent) / str(count), FINGERPRINT))
            fill(bank, mine, count, seed)
            banks[count] = bank
        scores = [ask(bank).scores for bank in banks.values()]
        questions = timed({str(n): lambda b=b: ask(b) for n, b in banks.items()}, repeats)
        firsts = timed({str(n): lambda b=b: first(b) for n, b in banks.items()}, repeats)
        bank, base = banks[others[-1]], str(others[0])
        wanted = {"own": "a1", "another tenant's": "b1", "nobody's": "c1"}
        gets = timed({who: lambda i=i: bank.get([i], "a") for who, i in wanted.items()}, 50 * repeats)
        return {
            "what": "tenants",
            "mine": mine,
            "seed": seed,
            "equal_scores": all(torch.equal(s, scores[0]) for s in scores),
            "rows_read": {str(n): rows_read(lambda b=b: ask(b)) for n, b in banks.items()},
            "question_ratio": {n: round(s / questions[base], 2) for n, s in questions.items()},
            "first_question_ratio": {n: round(s / firsts[base], 2) for n, s in firsts.items()},
            "get_ratio_to_nobodys": {who: round(s / gets["nobody's"], 3) for who, s in gets.items()},
        }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mine", type=int, default=200)
    parser.add_argument("--others", default="0,2000,20000", help="the other tenant's documents; ratios to the first")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(run(given.mine, [int(n) for n in given.others.split(",")], given.repeats, given.seed)))  # noqa: T201


if __name__ == "__main__":
    main()
