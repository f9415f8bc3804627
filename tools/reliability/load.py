"""Load: hours compressed into minutes. Each mode prints one line of JSON.

python tools/reliability/load.py --minutes 15          sustained use of one memory, watched for leaks
python tools/reliability/load.py --documents 100000    one memory that grows, with questions on the way
python tools/reliability/load.py --questions 1000      a batch of questions against the same ones one by one
python tools/reliability/load.py --cancel 300          cancellation and Ctrl-C at random moments
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import places  # noqa: F401
from vitals import Vitals, judged, vitals

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.measuring.peak import peak_bytes, reset_peak
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter, tiny_backbone

WORDS = ("lighthouse", "beekeeping", "glacier", "violin", "harbour", "compiler", "saffron", "meteor", "canal", "loom")
SHORT = {"max_new_tokens": 3}


def document(name: str, version: int) -> dict[str, Any]:
    """A document whose text says which one it is, and which version of it."""
    rng = Random(f"{name}/{version}")
    text = f"{name} v{version}: " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 12)))
    return {"id": name, "text": text, "metadata": {"part": rng.randrange(4), "version": version}}


def question(rng: Random) -> str:
    """A question that no two calls are likely to repeat."""
    return f"Which {rng.choice(WORDS)} is near {rng.choice(WORDS)} {rng.randrange(10_000)}?"


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for a bank, and a temporary folder that belongs to this process alone."""
    with tempfile.TemporaryDirectory() as parent:
        (Path(parent) / "tmp").mkdir()
        before, tempfile.tempdir = tempfile.tempdir, str(Path(parent) / "tmp")
        try:
            yield Path(parent) / "bank"
        finally:
            tempfile.tempdir = before


def opened(folder: Path, backbone: Backbone, **settings: Any) -> LatentMemory:
    """A memory on the tiny random model."""
    return LatentMemory.open(
        folder, model=backbone, adapter=tiny_adapter(backbone), instruction="Be brief.", **settings
    )


class Life:
    """A memory that is used in every way while the number of its documents stays the same.

    `expected` is id -> document, what the memory must hold after every call.
    """

    def __init__(self, folder: Path, backbone: Backbone, documents: int, seed: int) -> None:
        """Fill the memory with `documents` documents."""
        self.folder, self.backbone, self.rng = folder, backbone, Random(seed)
        self.counts: dict[str, int] = {}
        self.expected = {f"d{n}": document(f"d{n}", 0) for n in range(documents)}
        self._next = documents
        self.memory = opened(folder, backbone)
        self.memory.add(list(self.expected.values()))

    def cycle(self) -> None:
        """A round of changes and questions, then a compaction; raises AssertionError where the memory is wrong."""
        for _ in range(12):
            self.count(self.rng.choice([self.update, self.replace, self.retag, self.one_by_one]))
            self.count(self.rng.choice([self.ask, self.retrieve, self.leave_a_stream, self.read_elsewhere]))
        self.count(self.rng.choice([self.snapshot, self.reopen, self.batch]))
        self.count(self.compact)
        self.check()

    def count(self, call: Callable[[], None]) -> None:
        """Make a call and count it."""
        call()
        self.counts[call.__name__] = self.counts.get(call.__name__, 0) + 1

    def update(self) -> None:
        """New versions of some documents in one call."""
        self.put([document(name, self._version(name)) for name in self.rng.sample([*self.expected], 10)])

    def one_by_one(self) -> None:
        """New versions of some documents, a call and a commit each."""
        for name in self.rng.sample([*self.expected], 4):
            self.put([document(name, self._version(name))])

    def retag(self) -> None:
        """Other metadata for some documents, whose latents are not computed again."""
        chosen = [self.expected[name] for name in self.rng.sample([*self.expected], 5)]
        self.put([{**d, "metadata": {**d["metadata"], "tag": self.rng.random()}} for d in chosen])

    def put(self, documents: list[dict[str, Any]]) -> None:
        """Add documents and expect them."""
        self.memory.add(documents)
        self.expected |= {d["id"]: d for d in documents}

    def _version(self, name: str) -> int:
        return int(self.expected[name]["metadata"]["version"]) + 1

    def replace(self) -> None:
        """Delete some documents and add as many under ids never used before."""
        gone = self.rng.sample([*self.expected], 10)
        assert self.memory.delete(gone).deleted == tuple(gone)
        for name in gone:
            del self.expected[name]
        self.put([document(f"d{self._next + n}", 0) for n in range(len(gone))])
        self._next += len(gone)

    def ask(self) -> None:
        """Every source is a document as it is now."""
        for source in self.memory.ask(question(self.rng), **SHORT).sources:
            assert source.text == self.expected[source.id]["text"]

    def retrieve(self) -> None:
        """Hits pass the filter and are as they are now."""
        for hit in self.memory.retrieve(question(self.rng), 5, filter={"part": 1}):
            assert hit.metadata == self.expected[hit.id]["metadata"] and hit.metadata["part"] == 1

    def batch(self) -> None:
        """A batch of questions."""
        assert len(self.memory.ask([question(self.rng) for _ in range(20)], **SHORT)) == 20

    def leave_a_stream(self) -> None:
        """A stream that is left after one piece, closed or not."""
        stream = self.memory.stream(question(self.rng), max_new_tokens=50)
        next(stream, None)
        if self.rng.random() < 0.5:
            stream.close()

    def read_elsewhere(self) -> None:
        """A second handle, for reading."""
        with opened(self.folder, self.backbone, read_only=True) as reader:
            assert set(reader.ids()) == self.expected.keys()
            reader.retrieve(question(self.rng), 2)

    def snapshot(self) -> None:
        """A snapshot that is opened after changes and dropped."""
        before = set(self.expected)
        self.memory.snapshot("now")
        self.replace()
        with opened(self.folder, self.backbone, snapshot="now") as then:
            assert set(then.ids()) == before
        self.memory.drop_snapshot("now")

    def reopen(self) -> None:
        """Close the memory and open it again."""
        self.memory.close()
        self.memory = opened(self.folder, self.backbone)

    def compact(self) -> None:
        """Compact, so that the disk holds live documents only."""
        self.memory.compact()

    def check(self) -> None:
        """The memory holds exactly what is expected."""
        assert {d.id: d.text for d in self.memory.get([*self.memory.ids()])} == {
            name: d["text"] for name, d in self.expected.items()
        }
        assert self.memory.stats().deleted == 0


def sustained(seconds: float, seed: int = 0, documents: int = 200, cycles: int = 0) -> dict[str, Any]:
    """Use one memory for `seconds` (and at least `cycles` cycles) while another thread asks; see `judged`."""
    with workplace() as folder:
        life = Life(folder, tiny_backbone(), documents, seed)
        with asking(life.memory.engine.backbone, folder, seed) as answers:
            began, samples = time.monotonic(), list[Vitals]()
            while time.monotonic() - began < seconds or len(samples) < cycles:
                life.cycle()
                samples.append(vitals(folder))
        report = life.memory.verify()
        life.memory.close()
        assert report.ok, report
    counts = {**life.counts, "answers_in_another_thread": answers[0], "cycles": len(samples), "documents": documents}
    return {"what": "sustained", "seed": seed, "counts": counts, **judged(samples)}


@contextmanager
def asking(backbone: Backbone, folder: Path, seed: int) -> Iterator[list[int]]:
    """Ask from another thread, through a handle of its own that follows the writer, until the block is left."""
    done, answers, failures = threading.Event(), [0], []

    def run() -> None:
        rng = Random(seed + 1)
        try:
            with opened(folder, backbone, read_only=True) as reader:
                while not done.is_set():
                    reader.refresh()
                    for source in reader.ask(question(rng), **SHORT).sources:
                        assert source.text.startswith(f"{source.id} v")
                    answers[0] += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]


def growing(documents: int, seed: int = 0, stops: int = 5) -> dict[str, Any]:
    """Add `documents` documents to one memory; at `stops` sizes, each three times the last, look at its costs."""
    sizes = sorted({max(1, documents // 3**n) for n in range(stops)})
    rows, rng, backbone = [], Random(seed), tiny_backbone()
    with workplace() as folder, opened(folder, backbone) as memory:
        at = 0
        for size in sizes:
            began = time.perf_counter()
            memory.add(document(f"d{n}", 0) for n in range(at, size))
            rate = (size - at) / (time.perf_counter() - began)
            at = size
            rows.append({"documents": size, "added_per_second": round(rate), **_costs(memory, folder, backbone, rng)})
            assert memory.stats().documents == size
        assert memory.verify().ok
    return {"what": "growing", "seed": seed, "counts": {"documents": documents}, "sizes": rows}


def _costs(memory: LatentMemory, folder: Path, backbone: Backbone, rng: Random) -> dict[str, Any]:
    """Medians in milliseconds of single calls, and bytes."""

    def milliseconds(call: Callable[[], object], times: int) -> float:
        spent = []
        for _ in range(times):
            began = time.perf_counter()
            call()
            spent.append(time.perf_counter() - began)
        return round(1000 * median(spent), 2)

    def reopen() -> None:
        with opened(folder, backbone, read_only=True) as reader:
            assert reader.retrieve("lighthouse", 1)

    some = rng.sample(range(memory.stats().documents), 10)
    looked, stats = vitals(folder), memory.stats()
    return {
        "retrieve_ms": milliseconds(lambda: memory.retrieve(question(rng), 5), 20),
        "filtered_ms": milliseconds(lambda: memory.retrieve(question(rng), 5, filter={"part": 1}), 5),
        "ask_ms": milliseconds(lambda: memory.ask(question(rng), **SHORT), 10),
        "open_and_retrieve_ms": milliseconds(reopen, 5),
        "add_unchanged_ms": milliseconds(lambda: memory.add([document(f"d{n}", 0) for n in some]), 10),
        "update_one_ms": milliseconds(lambda: memory.add(document(f"d{some[0]}", rng.randrange(1, 10**9))), 10),
        "memory_bytes": looked.memory,
        "open_files": looked.open_files,
        "mapped_files": looked.mapped_files,
        "disk_bytes": looked.disk,
        "segments": stats.segments,
    }


def batch(questions: int, seed: int = 0, documents: int = 300) -> dict[str, Any]:
    """A batch of questions: the answers are those to the same questions one by one; what memory it takes."""
    rng = Random(seed)
    asked = [question(rng) for _ in range(questions)]
    few = asked[: max(1, questions // 10)]
    with workplace() as folder, opened(folder, tiny_backbone()) as memory:
        memory.add([document(f"d{n}", 0) for n in range(documents)])
        memory.ask(few, **SHORT)  # what is made once is made now
        took, peaks = {}, {}
        reset = reset_peak()
        for name, rows in (("tenth", few), ("all", asked)):
            reset_peak()
            began = time.perf_counter()
            answers, hits = memory.ask(rows, **SHORT), memory.retrieve(rows, 5)
            took[name], peaks[name] = time.perf_counter() - began, peak_bytes()
        began = time.perf_counter()
        alone = [(memory.ask(q, **SHORT), memory.retrieve(q, 5)) for q in asked]
        took["one_by_one"] = time.perf_counter() - began
    same = [
        (together.text, [s.id for s in together.sources], [h.id for h in found])
        == (one.text, [s.id for s in one.sources], [h.id for h in hit])
        for together, found, (one, hit) in zip(answers, hits, alone, strict=True)
    ]
    return {
        "what": "batch",
        "seed": seed,
        "counts": {"questions": questions, "documents": documents, "different": same.count(False)},
        "seconds": {name: round(value, 2) for name, value in took.items()},
        "peak_bytes": peaks if reset else None,
    }


def main() -> None:
    """Run the modes that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="sustained use, for so long")
    parser.add_argument("--documents", type=int, help="one growing memory, up to so many")
    parser.add_argument("--questions", type=int, help="a batch of so many")
    parser.add_argument("--cancel", type=int, help="so many cancellations")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.minutes is not None:
        _tell(sustained(60 * chosen.minutes, chosen.seed))
    if chosen.documents is not None:
        _tell(growing(chosen.documents, chosen.seed))
    if chosen.questions is not None:
        _tell(batch(chosen.questions, chosen.seed))
    if chosen.cancel is not None:
        from cancelling import cancelling

        _tell(cancelling(chosen.cancel, chosen.seed))


def _tell(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
