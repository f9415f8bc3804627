"""Data sets and systems for tests of the head-to-head run: small, quick, and breakable on purpose."""

from __future__ import annotations

import json
import re

from facade import TOPICS, topics
from msa_plugin.bench.base import Cost, Found, Reply
from msa_plugin.bench.result import Scored
from msa_plugin.bench.runner import CompareConfig, compare
from msa_plugin.config import GenerationConfig, MemoryConfig
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.types import Document
from tiny import tiny_adapter


def save_dataset(folder, dataset):
    """A data set as files whose questions name their positives."""
    folder.mkdir(parents=True)
    passages = [{"id": d.id, "title": d.title, "text": d.text} for d in dataset.documents]
    questions = [
        {"id": q.id, "question": q.text, "answers": [*q.answers], "positive_ids": [*q.positives], "hops": q.hops}
        for q in dataset.questions
    ]
    for name, records in (("corpus", passages), ("queries", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return folder


def toy(folder, hops=(1, 1, 2, 2, 1, 1, 2, 1), answers=True):
    """A data set with a passage and a question on each topic."""
    documents = tuple(Document.of({k: d[k] for k in ("id", "title", "text")}) for d in topics())
    questions = tuple(
        Question(
            f"q{n}",
            f"What is a {topic}?",
            (f"answer {topic}",) if answers else (),
            dict.fromkeys([topic, TOPICS[n - 1]][: hops[n]], 1),
            hops[n],
        )
        for n, topic in enumerate(TOPICS)
    )
    return save_dataset(folder, Dataset(folder.name, documents, questions))


class Words:
    """Finds by shared words; `fails` makes its calls of `find` raise, counted from 1."""

    def __init__(self, name, workspace, log, fails):
        self.name, self.workspace, self.log, self.fails, self.calls = name, workspace, log, fails, 0

    def prepare(self):
        self.log.append(f"{self.name} prepares")
        return Cost(seconds=2.0, tokens=1000, disk_bytes=4000, memory_bytes=8000)

    def find(self, questions, k):
        self.calls += 1
        if self.calls in self.fails:
            raise self.fails[self.calls]
        self.log.append(f"{self.name} finds {len(questions)}")
        return [Found(tuple(self._ranked(q)[:k]), {"route": 0.01}, (q,)) for q in questions]

    def _ranked(self, question):
        words = set(re.findall(r"\w+", question.lower()))
        hits = [Scored(d.id, self._score(words, d.text)) for d in self.workspace.dataset.documents]
        return sorted(hits, key=lambda s: (-s.score, s.id))

    def _score(self, words, text):
        return float(len(words & set(re.findall(r"\w+", text.lower()))))

    def close(self):
        self.log.append(f"{self.name} closes")


class Wrong(Words):
    """Ranks the other way round."""

    def _score(self, words, text):
        return -super()._score(words, text)


class Few(Words):
    """Finds the best three at most, and says so."""

    notes = ("three at most",)

    def _ranked(self, question):
        return super()._ranked(question)[:3]


class Knows:
    """Only answers; reads nothing, and is right."""

    def __init__(self, name):
        self.name = name

    def answer(self, questions):
        topic = [re.sub(r".*a (\w+)\?", r"\1", q) for q in questions]
        return [Reply(f"It is the answer {t}", (), {"decode": 0.1}, 7, 3) for t in topic]


class Both(Words):
    """Finds, and chooses for itself what to read: the best two."""

    def answer(self, questions):
        found = self.find(questions, 2)
        return [Reply(f"answer {f.ranking[0].id}", tuple(s.id for s in f.ranking), {}, 9, 2) for f in found]


class Fakes:
    """A registry; `log` is what its systems did, `fails` what they are to raise: system -> call of find -> error."""

    def __init__(self, **fails):
        self.log = []
        self.fails = fails
        self.kinds = {"words": Words, "wrong": Wrong, "msa": Both}

    def __call__(self, name, workspace, *_):
        if name == "knows":
            return Knows(name)
        if name not in self.kinds:
            raise self.fails[name][0]
        return self.kinds[name](name, workspace, self.log, self.fails.get(name, {}))


def config(out, data, part="retrieval", **changes):
    """A run that is over in a second on the tiny backbone."""
    given = {
        "systems": ("msa", "words", "wrong"),
        "passages": (1, 2),
        "batch": 3,
        "memory": MemoryConfig(instruction="Be brief."),
        "generation": GenerationConfig(max_new_tokens=2),
        **changes,
    }
    return CompareConfig(part=part, out=out, data=data, **given)


def run(backbone, fakes, given, **more):
    """`compare` on the tiny backbone."""
    return compare(given, create=fakes, backbone=backbone, adapter=tiny_adapter(backbone), **more)


def numbers(rows):
    """What rows say, without times and peaks, which no two runs share."""
    timed = ("seconds", "peak_rss_bytes")
    return {
        (r.part, r.dataset, r.system, r.metric, json.dumps(r.settings, sort_keys=True)): (r.value, r.low, r.high, r.n)
        for r in rows
        if r.metric not in timed
    }


def reasons(rows, metric):
    """(data set, system, reason) of skips or notes."""
    return ((r.dataset, r.system, r.settings["reason"]) for r in rows if r.metric == metric)
