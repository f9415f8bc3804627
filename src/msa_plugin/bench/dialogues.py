"""Conversations as data sets: each dialogue one of its own, by turn or by session, as `memory.add_turns` stores turns.

A corpus of dialogues has a `namespace` with every record, the same in its questions, and `metadata` with `date`,
`session` and `speaker`, which the text begins with. LoCoMo is laid out like this. A question's relevant sessions are
those of its relevant turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

from msa_plugin.bench.store import Results
from msa_plugin.conversations import Turn, day, documents_of
from msa_plugin.data.datasets import Dataset, load_dataset, namespaces_of
from msa_plugin.dates import instant
from msa_plugin.errors import IngestError
from msa_plugin.measuring import metrics
from msa_plugin.types import Document

Unit: TypeAlias = Literal["turns", "sessions"]
SHOWN = ("R@5", "R@10", "nDCG@10")
UNANSWERABLE = "adversarial"  # asks for what nobody said; its turns are those that it could be mistaken about


def dialogues(path: str | Path, unit: Unit) -> list[Dataset]:
    """A data set for each dialogue in the folder `path`, named by dialogue and unit.

    Raises IngestError as `load_dataset`, and for records that are no turns.
    """
    whole = load_dataset(path)
    places, asked = namespaces_of(Path(path))
    found = []
    for name in dict.fromkeys(places.values()):
        turns = [d for d in whole.documents if places.get(d.id) == name]
        questions = [q for q in whole.questions if asked.get(q.id) == name]
        documents = list(_turns(turns, name) if unit == "turns" else _sessions(turns, name))
        if unit == "sessions":
            home = {d.id: _session_id(d, name) for d in turns}
            questions = [
                replace(q, positives={home[turn]: 1 for turn in q.positives if turn in home}) for q in questions
            ]
        if questions:
            found.append(Dataset(f"{name}-{unit}", tuple(documents), tuple(questions)))
    return found


def _turns(turns: Iterable[Document], name: str) -> Iterator[Document]:
    """The turns of each session, with what `add_turns` puts in front of them."""
    for session, said in groupby(turns, lambda document: _session_id(document, name)):
        given = list(said)
        yield from documents_of([_turn(document) for document in given], [d.id for d in given], session)


def _sessions(turns: Iterable[Document], name: str) -> Iterator[Document]:
    """A document for each session: its day, and what was said."""
    for session, said in groupby(turns, lambda document: _session_id(document, name)):
        given = [_turn(document) for document in said]
        yield Document(session, "\n".join([f"[{day(given[0].at)}]", *(turn.line for turn in given)]))


def _session_id(document: Document, name: str) -> str:
    return f"{name}/session-{_field(document, 'session')}"


def _turn(document: Document) -> Turn:
    speaker = str(_field(document, "speaker"))
    said = instant(_field(document, "date"), "date", IngestError)
    return Turn(speaker, document.text.removeprefix(f"{speaker}: "), said)


def _field(document: Document, name: str) -> Any:
    if name not in document.metadata:
        raise IngestError(f"{document.id!r} is no turn of a dialogue: its metadata lack {name!r}")
    return document.metadata[name]


def by_kind(results: Results, unit: Unit) -> list[tuple[str, str, int, tuple[float, ...]]]:
    """Kind, system, number of questions and the means of `SHOWN` over the questions of all dialogues, pooled.

    The last kind is that of all questions that have an answer. Systems that did not finish everywhere are left out.
    """
    records: dict[str, list[dict[str, Any]]] = {}
    sets = [(d, s) for d, s in results.question_sets("retrieval") if d.endswith(f"-{unit}")]
    for dataset, system in sets:
        records.setdefault(system, []).extend(results.questions("retrieval", dataset, system))
    most = max(map(len, records.values()), default=0)
    found = []
    for system, asked in records.items():
        if len(asked) < most:
            continue
        positives = {r["id"]: r["positives"] for r in asked}
        rankings = {r["id"]: [hit[0] for hit in r["ranking"]] for r in asked}
        scores = metrics.retrieval_scores(positives, rankings, SHOWN)
        kinds = {kind: [r["id"] for r in asked if r["kind"] == kind] for kind in sorted({r["kind"] for r in asked})}
        kinds["all with an answer"] = [r["id"] for r in asked if r["kind"] != UNANSWERABLE]
        for kind, ids in kinds.items():
            if ids:
                means = tuple(sum(scores[metric][i] for i in ids) / len(ids) for metric in SHOWN)
                found.append((kind, system, len(ids), means))
    return sorted(found, key=lambda row: row[0])
