"""A corpus that grows: nested lists of passages of given sizes, and a bank for each, every passage encoded once.

The smallest list begins with the passages that answer the questions; the rest of the data set's corpus and then
distractors follow. Each list is a beginning of the next, so what changes from size to size is only what is in the way.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

import torch

from msa_plugin import prompts
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.quantize import is_scale, scale_name, stored_keys
from msa_plugin.bench.base import OnStep
from msa_plugin.bench.sampling import in_order
from msa_plugin.bench.units import tokens as short_tokens
from msa_plugin.config import BesideConfig, MemoryConfig
from msa_plugin.data import jsonl
from msa_plugin.data.datasets import Dataset, Question, corpus_hash, load_distractors
from msa_plugin.engine.setup import fingerprint
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document, EncodedDocument

NAMESPACE = "default"
BANKS = "banks"  # folder of `Banks` in a cache
NOISE = 0.5
_COUNTED = 1024
_ACCOUNT = "encoding.json"  # beside the encoded passages: {"seconds", "tokens"} that encoding took in all
Tokens = Callable[[Sequence[Document]], list[int]]


@dataclass(frozen=True)
class GrowthStep:
    """One size: the first `documents` passages hold `tokens` tokens; `synthetic` ones, without a text, come on top."""

    size: int
    documents: int
    tokens: int
    synthetic: int = 0


@dataclass(frozen=True)
class GrowthPlan:
    """Questions, the passages in the order in which they are added, and the sizes at which to measure."""

    name: str
    questions: tuple[Question, ...]
    documents: tuple[Document, ...]
    steps: tuple[GrowthStep, ...]
    notes: tuple[str, ...]

    def dataset(self, step: GrowthStep) -> Dataset:
        """The data set of one size."""
        return Dataset(self.name, self.documents[: step.documents], self.questions, self.notes)

    @property
    def fillers(self) -> tuple[Document, ...]:
        """Passages that answer none of the questions: what synthetic ones are made from."""
        gold = {i for q in self.questions for i in q.positives}
        return tuple(d for d in self.documents if d.id not in gold)


def plan(
    dataset: Dataset,
    distractors: Iterable[Document],
    sizes: Sequence[int],
    tokens: Tokens,
    *,
    questions: int,
    seed: int = 0,
    synthetic: bool = False,
) -> GrowthPlan:
    """Order passages and find where each size is reached.

    So many questions are taken that their passages fit the smallest size. Sizes beyond the last passage are filled up
    with synthetic passages if `synthetic`, else left out; `notes` say so, and how many distractors were dropped because
    their text is in the corpus. Raises ConfigError for sizes or questions below 1, and when nothing fits.
    """
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1 or questions < 1:
        raise ConfigError("give at least one size in tokens and one question, all at least 1")
    notes = list(dataset.notes)
    counts = dict(zip((d.id for d in dataset.documents), tokens(dataset.documents), strict=True))
    asked = _fitting(dataset, wanted[0], counts, in_order(dataset.questions, seed)[:questions], notes)
    gold = {i for q in asked for i in q.positives}
    rest = [d for d in dataset.documents if d.id not in gold]
    random.Random(seed).shuffle(rest)
    ordered = [d for d in dataset.documents if d.id in gold] + rest
    dropped: list[str] = []
    more = _counted(_unseen(distractors, dataset.documents, dropped), tokens)
    chosen, steps, total = _steps(chain(((d, counts[d.id]) for d in ordered), more), wanted)
    if dropped:
        notes.append(f"{len(dropped)} distractors were left out: their text was there before")
    for size in wanted[len(steps) :]:
        if synthetic and chosen:
            steps.append(GrowthStep(size, len(chosen), total, round((size - total) * len(chosen) / total)))
        else:
            notes.append(f"{size:,} tokens were not reached: corpus and distractors together hold {total:,}")
    if not steps:
        raise ConfigError(f"no size can be measured: {'; '.join(notes)}")
    return GrowthPlan(dataset.name, tuple(asked), tuple(chosen), tuple(steps), tuple(notes))


def distractors(folder: Path, size: int, tokens: Tokens) -> tuple[Document, ...]:
    """The first passages of `folder`, so many that they hold `size` tokens. Raises ConfigError when there are fewer."""
    chosen, steps, _ = _steps(_counted(load_distractors(folder, sys.maxsize), tokens), [size])
    if not steps:
        raise ConfigError(f"{folder.name} holds fewer than {size:,} tokens; ask for fewer")
    return tuple(chosen)


def padded(dataset: Dataset, others: Sequence[Document], size: int) -> Dataset:
    """The same questions with `others` behind the corpus, whose `size` in tokens joins the name; no text stands twice.

    Raises ConfigError when one of `others` has the id of a passage.
    """
    dropped: list[str] = []
    corpus = (*dataset.documents, *_unseen(others, dataset.documents, dropped))
    note = (f"{len(dropped)} distractors were left out: their text was there before",) if dropped else ()
    return Dataset(f"{dataset.name}+{short_tokens(size)}", corpus, dataset.questions, (*dataset.notes, *note))


def _fitting(
    dataset: Dataset, size: int, counts: dict[str, int], questions: Sequence[Question], notes: list[str]
) -> list[Question]:
    """The first questions whose passages together have at most `size` tokens."""
    held: set[str] = set()
    asked: list[Question] = []
    for question in questions:
        held |= set(question.positives)
        if sum(counts[i] for i in held) > size:
            break
        asked.append(question)
    if not asked:
        raise ConfigError(f"{dataset.name}: the passages of one question exceed {size:,} tokens; start with more")
    if len(asked) < len(questions):
        notes.append(f"the passages that answer more than {len(asked)} questions do not fit {size:,} tokens")
    if len(asked) < len(dataset.questions):
        notes.append(f"{len(asked)} of {len(dataset.questions)} questions, sampled evenly over numbers of hops")
    return asked


def _unseen(distractors: Iterable[Document], corpus: Sequence[Document], dropped: list[str]) -> Iterator[Document]:
    """Distractors whose text (blanks and case aside) is not in the corpus and which did not occur before."""
    seen = {_squeezed(d.text) for d in corpus}
    ids = {d.id for d in corpus}
    for document in distractors:
        text = _squeezed(document.text)
        if text in seen:
            dropped.append(document.id)
            continue
        seen.add(text)
        if document.id in ids:
            raise ConfigError(f"the distractor {document.id!r} has the id of a passage of the corpus")
        ids.add(document.id)
        yield document


def _squeezed(text: str) -> str:
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()


def _counted(documents: Iterator[Document], tokens: Tokens) -> Iterator[tuple[Document, int]]:
    while portion := list(islice(documents, _COUNTED)):
        yield from zip(portion, tokens(portion), strict=True)


def _steps(
    stream: Iterator[tuple[Document, int]], sizes: Sequence[int]
) -> tuple[list[Document], list[GrowthStep], int]:
    """Passages up to the largest size, for each size the first beginning that reaches it, and the tokens of all."""
    chosen: list[Document] = []
    steps: list[GrowthStep] = []
    total = 0
    for document, count in stream:
        chosen.append(document)
        total += count
        while len(steps) < len(sizes) and total >= sizes[len(steps)]:
            steps.append(GrowthStep(sizes[len(steps)], len(chosen), total))
        if len(steps) == len(sizes):
            break
    return chosen, steps, total


def keys_alone(config: MemoryConfig) -> MemoryConfig:
    """The same, but what is not said about words and names is that they do not count: systems bring their own."""
    return config.model_copy(update={name: getattr(config, name) or 0.0 for name in BesideConfig.model_fields})


class Banks:
    """Banks of any list of passages, copied from one that holds every passage encoded so far, by content.

    The layout is that of a memory to which the passages were added in one go, so speed is that of a bank of that size.
    """

    def __init__(self, folder: Path, backbone: Backbone, adapter: Adapter, config: MemoryConfig) -> None:
        """Everything is kept in `folder`, by the fingerprint of the latents."""
        self.backbone, self.adapter, self.config = backbone, adapter, keys_alone(config)
        self.made_with = fingerprint(backbone, adapter, config)
        digest = hashlib.sha256(json.dumps(asdict(self.made_with), sort_keys=True).encode()).hexdigest()
        self.folder = folder.resolve() / digest[:12]

    def tokens(self, documents: Sequence[Document]) -> list[int]:
        """Tokens of each document as the encoder reads it."""
        if not documents:
            return []
        texts = [prompts.document_text(d.title, d.text) for d in documents]
        return [len(ids) for ids in self.backbone.tokenize_batch(texts)]

    def encode(self, documents: Sequence[Document], on_step: OnStep = lambda what, done, total: None) -> None:
        """Encode those of `documents` that were not encoded before; what is done stays when this is interrupted."""
        unnamed = {d.content_hash: Document(d.content_hash, d.text, d.title) for d in documents}
        with self._open(self.folder / "encoded") as memory:
            report = memory.add(
                list(unnamed.values()),
                on_progress=lambda p: on_step("encoding", p.documents, len(unnamed)),
            )
        if report.tokens:  # finding out that all are known is not encoding
            spent = self._account()
            total = {"seconds": spent["seconds"] + report.seconds, "tokens": spent["tokens"] + report.tokens}
            jsonl.write_atomic(self.folder / _ACCOUNT, json.dumps(total))

    def seconds(self, tokens: int) -> float:
        """What encoding so many tokens took, at the mean pace of everything that was encoded here; 0 before that."""
        spent = self._account()
        return tokens * spent["seconds"] / spent["tokens"] if spent["tokens"] else 0.0

    def _account(self) -> dict[str, float]:
        path = self.folder / _ACCOUNT
        if not path.exists():
            return {"seconds": 0.0, "tokens": 0}
        spent: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return spent

    def open(
        self, documents: Sequence[Document], synthetic: int = 0, like: Sequence[Document] = (), seed: int = 0
    ) -> LatentMemory:
        """A memory of exactly these documents, built on first use; all must have been encoded.

        `synthetic` more get the routing keys of randomly chosen ones of `like` with noise of `NOISE` times a key's
        length added.
        """
        return self._open(self.build(documents, synthetic, like, seed))

    def unfilled(self, documents: Sequence[Document]) -> LatentMemory:
        """The memory that `build` fills with these documents, with what it holds so far."""
        return self._open(self._path(documents))

    def _path(self, documents: Sequence[Document], synthetic: int = 0, seed: int = 0) -> Path:
        return self.folder / (f"bank-{corpus_hash(documents)}" + (f"-{synthetic}-{seed}" if synthetic else ""))

    def build(
        self, documents: Sequence[Document], synthetic: int = 0, like: Sequence[Document] = (), seed: int = 0
    ) -> Path:
        """Make the bank that `open` opens."""
        path = self._path(documents, synthetic, seed)
        with (
            MemoryBank.open(self.folder / "encoded", self.made_with, create=False, read_only=True) as source,
            MemoryBank.open(path, self.made_with) as bank,
            bank.writing(),
        ):
            done = bank.count(NAMESPACE)
            left = range(max(0, done - len(documents)), synthetic)
            made = self._synthetic(source, like or documents, left, seed)
            for portion in self._portions(chain(self._copies(source, documents[done:]), made)):
                bank.commit(portion, NAMESPACE)
        return path

    def _open(self, path: Path) -> LatentMemory:
        return LatentMemory.open(path, model=self.backbone, adapter=self.adapter, config=self.config)

    def _copies(self, source: MemoryBank, documents: Sequence[Document]) -> Iterator[EncodedDocument]:
        for start in range(0, len(documents), _COUNTED):
            portion = documents[start : start + _COUNTED]
            known = source.lookup({d.content_hash for d in portion}, NAMESPACE)
            for document in portion:
                yield replace(source.latents(known[document.content_hash].ordinal), document=document)

    def _portions(self, encoded: Iterator[EncodedDocument]) -> Iterator[list[EncodedDocument]]:
        """Portions as `LatentMemory.add` commits them."""
        held: list[EncodedDocument] = []
        size = 0
        for item in encoded:
            held.append(item)
            size += sum(t.numel() * t.element_size() for t in (*item.keys.values(), *item.content.values()))
            if size >= self.config.segment_bytes or len(held) >= self.config.segment_documents:
                yield held
                held, size = [], 0
        if held:
            yield held

    def _synthetic(
        self, source: MemoryBank, like: Sequence[Document], numbers: Iterable[int], seed: int
    ) -> Iterator[EncodedDocument]:
        """Made-up passages. Each has its own generator, so that an interrupted run continues the random sequence."""
        for number in numbers:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            pick = like[int(torch.randint(len(like), (1,), generator=generator))]
            [known] = source.lookup([pick.content_hash], NAMESPACE).values()
            latents = source.latents(known.ordinal)
            document = Document(f"synthetic-{number}", f"synthetic passage {number}")
            yield replace(latents, document=document, keys=noisy_keys(latents.keys, generator))


def noisy_keys(keys: Mapping[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """`noisy` of each group as the bank keeps it; int8 keys are turned into numbers for it and back."""
    result: dict[str, torch.Tensor] = {}
    for group, rows in keys.items():
        if is_scale(group):
            continue
        scales = keys.get(scale_name(group))
        exact = rows if scales is None else rows * scales
        result |= stored_keys({group: noisy(exact, generator)}, rows.dtype)
    return result


def noisy(keys: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Keys [C, W] with random vectors of `NOISE` times their length added, at their old length."""
    exact = keys.float()
    length = exact.norm(dim=1, keepdim=True)
    noise = torch.nn.functional.normalize(torch.randn(exact.shape, generator=generator), dim=1)
    mixed = torch.nn.functional.normalize(exact + NOISE * length * noise, dim=1)
    result: torch.Tensor = (mixed * length).to(keys.dtype)
    return result
