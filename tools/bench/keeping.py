"""What keeping a memory costs beside its questions: opening it, looking whether others wrote, changes, adding files.

    OMP_NUM_THREADS=1 python tools/bench/keeping.py --passages 1e3,1e4 --cpu-clock --distractors DATA/distractors

Ratios, taken in one run. Opening is measured on banks of growing size whose texts are real passages, or made from the
sample corpus's words, and whose routing keys are the sample's, drawn again with noise (`scale_sample`): no figure here
depends on which keys they are. Documents are replaced and then deleted by one handle while another one asks.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain, count, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_shell import Row, clock, main, medians
from scale_sample import KeySample, encoded, encoded_sample

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bench.command import sizes
from msa_plugin.bench.growth import noisy
from msa_plugin.config import BesideConfig, MemoryConfig
from msa_plugin.data.datasets import approximate_tokens, load_distractors, sample_dataset
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.engine.setup import fingerprint
from msa_plugin.ingest import read_paths
from msa_plugin.measuring import peak
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document, Fingerprint

_PORTION = 16_384  # documents of one commit
_WARM = 4  # questions whose median is a warm one
_WORDS = 90  # of a passage that is made up
Clock = Callable[[], float]
_FILE_WORDS = 12  # of a file: what is measured is what a file costs beside encoding


def measure(
    backbone: Backbone,
    adapter: Any,
    *,
    passages: Any = "1e3,1e4,1e5",
    files: int = 2000,
    changes: int = 10,
    distractors: Any = None,
    repeats: int = 3,
    folder: Any = None,
    seed: int = 0,
    cpu_clock: bool = False,
) -> Iterator[Row]:
    """One row for each size of bank in passages, and one for `files` small files (0: none).

    Banks are filled with the passages of the folder `distractors` (None: made up), and written into `folder`, where
    those that are there are used again (None: a temporary one). `changes` documents are replaced and deleted (0: none).
    Raises what opening a memory and reading passages raise.
    """
    now, chosen = clock(cpu_clock), find_adapter(backbone, adapter)
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        dataset = sample_dataset()
        sample = encoded_sample(backbone, chosen, dataset, len(dataset.documents), len(dataset.questions))
        for count in sizes(passages):
            bank, began = Path(place) / f"passages-{count}", now()
            if not bank.exists():
                made_with = fingerprint(backbone, chosen, MemoryConfig(reading="text"))
                fill(
                    bank,
                    made_with,
                    sample,
                    chosen.config.routing.pooling,
                    islice(_passages(distractors, seed), count),
                    seed,
                )
            row = {"what": "open", "passages": count, "build_s": now() - began}
            row |= _opened(bank, backbone, chosen, sample.texts, now, repeats)
            yield row | (_changed(bank, backbone, chosen, sample.texts[0], now, changes) if changes else {})
        if files:
            yield {"what": "files", "files": files} | _files(Path(place), backbone, chosen, now, files, seed)


def fill(
    path: Path, made_with: Fingerprint, sample: KeySample, pooling: int, documents: Iterator[Document], seed: int
) -> None:
    """Write a bank of passages: their texts, and keys of the sample for as many chunks as they have tokens."""
    generator = torch.Generator().manual_seed(seed)
    with MemoryBank.open(path, made_with) as bank, bank.writing():
        while portion := list(islice(documents, _PORTION)):
            tokens = [approximate_tokens(d.text) for d in portion]
            sizes = [-(-n // pooling) for n in tokens]
            rows = torch.randint(len(sample.keys), (sum(sizes),), generator=generator)
            keys = noisy(sample.keys[rows], generator)
            bank.commit(encoded(portion, tokens, "shared", keys, sizes, torch.float16), "default")


def _passages(distractors: Any, seed: int) -> Iterator[Document]:
    """Endless: first the passages as they are, then halves of two joined, under the title of one."""
    rng = random.Random(seed)
    given = [*load_distractors(Path(distractors), 1 << 40)] if distractors else _made_up(rng)
    numbers = count()
    for document in given:
        yield Document(f"p{next(numbers)}", document.text, document.title)
    while True:
        one, other = rng.choice(given), rng.choice(given)
        halves = one.text[: len(one.text) // 2], other.text[len(other.text) // 2 :]
        yield Document(f"p{next(numbers)}", " ".join(halves), one.title)


def _made_up(rng: random.Random) -> list[Document]:
    """Passages of the sample corpus's words, as often as it has them."""
    words = [word for document in sample_dataset().documents for word in document.text.split()]
    titles = [" ".join(rng.sample(words, 2)).title() for _ in range(1000)]
    return [Document(f"d{n}", " ".join(rng.choices(words, k=_WORDS)), title) for n, title in enumerate(titles)]


def _opened(
    path: Path, backbone: Backbone, adapter: Adapter, questions: tuple[str, ...], now: Clock, repeats: int
) -> dict[str, Any]:
    """Open, ask once, ask more; medians over repetitions, each with a handle of its own."""
    found: list[dict[str, float]] = []
    before, own, _ = peak.resident_bytes(), peak.own_bytes(), peak.reset_peak()
    for _ in range(repeats):
        times = [now()]
        with LatentMemory.open(path, model=backbone, adapter=adapter, reading="text", read_only=True) as memory:
            for question in chain([None], islice(questions, 1 + _WARM)):
                if question is not None:
                    memory.retrieve(question, k=10)
                times.append(now())
            opened, first, *warm = (b - a for a, b in pairwise(times))
            values = {"open_s": opened, "first_s": first, "warm_s": median(warm), "look_s": _look(memory, now)}
            values |= _stages(memory, questions[1 : 1 + _WARM], now)
            stats, held, mine = memory.stats(), peak.resident_bytes() - before, peak.own_bytes() - own
        found.append(values)
    row: dict[str, Any] = medians(found)
    row["ratio"] = (row["open_s"] + row["first_s"]) / row["warm_s"]
    row["look_ratio"] = row["look_s"] / row["warm_s"]
    row["over_keys_ratio"] = row["all_s"] / row["keys_s"]
    row |= {"tokens": stats.tokens, "chunks": stats.chunks, "segments": stats.segments}
    row |= {"bytes_keys": stats.bytes_keys, "bytes_words": stats.bytes_words, "bytes_catalog": stats.bytes_catalog}
    return row | {"beyond_keys_bytes": held - stats.bytes_keys, "own_bytes": mine, "peak_bytes": peak.peak_bytes()}


def _stages(memory: LatentMemory, questions: Sequence[str], now: Clock) -> dict[str, float]:
    """Median seconds of a warm question: by keys alone, with words, with titles too, and with all that counts."""
    engine, found = memory.engine, dict[str, list[float]]()
    weights = engine.retriever.signals.weights
    words, titles, mentions = (weights.get(name, 0.0) for name in ("words", "names", "mentions"))
    stages = {"keys_s": (0.0, 0.0, 0.0), "words_s": (words, 0.0, 0.0), "titles_s": (words, titles, 0.0)}
    for question in questions:
        for name, (lexical, titled, shared) in {**stages, "all_s": (words, titles, mentions)}.items():
            weighed = engine.variant(BesideConfig(lexical=lexical, titles=titled, mentions=shared))
            one = LatentMemory(weighed, engine.bank, memory.namespace)
            began = now()
            one.retrieve(question, k=10)
            found.setdefault(name, []).append(now() - began)
    return {name: median(values) for name, values in found.items()}


def _changed(
    path: Path, backbone: Backbone, adapter: Adapter, question: str, now: Clock, changes: int
) -> dict[str, Any]:
    """Replace some documents and delete them, while another handle asks after each change."""
    row: dict[str, float] = {}
    settings: dict[str, Any] = {"model": backbone, "adapter": adapter, "reading": "text"}
    with LatentMemory.open(path, **settings) as writer, LatentMemory.open(path, **settings, read_only=True) as reader:
        ids = [*islice(writer.ids(), changes)]
        texts = [{"id": d.id, "text": f"{d.text} Changed.", "title": d.title} for d in writer.get(ids)]
        reader.retrieve(question, k=10)
        for name, change in (("update", partial(writer.add, texts)), ("delete", partial(writer.delete, ids))):
            began = now()
            change()
            changed = now()
            reader.retrieve(question, k=10)
            row |= {f"{name}_s": changed - began, f"after_{name}_s": now() - changed}
    return row


def _look(memory: LatentMemory, now: Clock, times: int = 200) -> float:
    """Of seeing that nobody else has written, which every call does."""
    began = now()
    for _ in range(times):
        memory.refresh()
    return (now() - began) / times


def _files(folder: Path, backbone: Backbone, adapter: Adapter, now: Clock, files: int, seed: int) -> dict[str, Any]:
    """Add a folder of small files, as `msa add` does, and the same texts in one call."""
    rng = random.Random(seed)
    words = [word for document in sample_dataset().documents for word in document.text.split()]
    source = folder / "files"
    source.mkdir(parents=True)
    for number in range(files):
        (source / f"{number:06d}.txt").write_text(" ".join(rng.choices(words, k=_FILE_WORDS)), encoding="utf-8")
    texts = [{"id": d.id, "text": d.text, "title": d.title} for d in read_paths([str(source)])]
    row = {}
    for name in ("one_call_s", "files_s"):
        with LatentMemory.open(folder / name, model=backbone, adapter=adapter, reading="text") as memory:
            began = now()
            memory.add(read_paths([str(source)]) if name == "files_s" else texts, on_progress=lambda progress: None)
            row[name] = now() - began
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.rmtree(source)
    return row | {"ratio": row["files_s"] / row["one_call_s"]}


if __name__ == "__main__":
    main(measure)
