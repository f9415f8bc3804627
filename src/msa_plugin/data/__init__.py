"""A small corpus of the project's own prose, with questions: for the demo, first steps and quick checks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from msa_plugin.types import Document


@dataclass(frozen=True)
class SampleQuestion:
    """A question about the sample corpus.

    `answers` are accepted spellings, each found word for word in a document of `positive_ids`. With two `hops` the
    question needs both positives, in order: the first one names the `bridge`, which the second one is about.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positive_ids: tuple[str, ...]
    hops: int
    bridge: str = ""


def sample_documents() -> list[Document]:
    """The sample corpus: some forty short documents, many of them about similar things."""
    return [
        Document(id=record["_id"], text=record["text"], title=record["title"], metadata=record["metadata"])
        for record in _records("sample_corpus.jsonl")
    ]


def sample_questions() -> list[SampleQuestion]:
    """The sample questions; the first five (three of one hop, two of two) are the demo's."""
    return [
        SampleQuestion(**record | {name: tuple(record[name]) for name in ("answers", "positive_ids")})
        for record in _records("sample_questions.jsonl")
    ]


def calibration_questions() -> list[str]:
    """Questions about anything, to find the centre of questions when calibrating without any at hand."""
    text = (resources.files("msa_plugin.data") / "calibration_questions.txt").read_text(encoding="utf-8")
    return text.splitlines()


def _records(name: str) -> list[dict[str, Any]]:
    text = (resources.files("msa_plugin.data") / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line]
