"""Data sets from folders: the layout of BEIR (corpus, queries, qrels) or one where questions name their positives.

    corpus.jsonl[.gz]    {"_id" or "id", "title", "text", "metadata"?}
    queries.jsonl[.gz]   {"_id" or "id", "text" or "question", "answers"?, "positive_ids"?, "hops"?, "type"?}
    qrels/<split>.tsv[.gz]   query-id, corpus-id, score (BEIR; test is taken before dev before train), or TREC's four
                             columns, of which the second says nothing; the header is optional

A question that is a passage of the corpus itself, under the same id, is not to be found as its own answer. What is left
out is said in `Dataset.notes`; what cannot be read is an error naming file and line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.data.qrels import lines, note, qrels
from msa_plugin.errors import DuplicateDocumentError, IngestError, InvalidDocumentError
from msa_plugin.types import Document


@dataclass(frozen=True)
class Question:
    """A question, the answers that count as right, and graded relevant passages (id -> grade > 0).

    `itself` says that it is also a passage of the corpus, under its own id, which must not count as found.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    positives: Mapping[str, int] = field(default_factory=dict)
    hops: int = 1
    kind: str = ""
    itself: bool = False


@dataclass(frozen=True)
class Dataset:
    """A corpus and the questions about it. `notes` say what was left out while loading, and why."""

    name: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = ()


class _Record(NamedTuple):
    where: str  # file and line, for messages
    data: dict[str, Any]


def find_datasets(folder: str | Path) -> list[Path]:
    """`folder` itself when it is a data set, else those of its folders that are, by name.

    Raises IngestError when there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise IngestError(f"{folder} is not a folder; give one data set or a folder of data sets")
    if _file(folder, "corpus") is not None:
        return [folder]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and _file(path, "corpus") is not None)
    if not found:
        raise IngestError(f"{folder} holds no data set: neither it nor a folder in it has a corpus.jsonl[.gz]")
    return found


def load_dataset(path: str | Path, *, unasked: bool = False) -> Dataset:
    """The data set in folder `path`, named after it; with `unasked` one without a file of questions is fine, too.

    Raises IngestError for files that are missing or malformed and when no question is left, and
    DuplicateDocumentError for ids that occur twice.
    """
    path = Path(path)
    if not path.is_dir():
        raise IngestError(f"{path} is not a folder with a data set")
    notes: list[str] = []
    documents = _documents(path, notes)
    if unasked and _file(path, "queries") is None:
        return Dataset(path.resolve().name, tuple(documents), (), tuple(notes))
    known = {document.id: document for document in documents}
    records = _queries(path)
    positives = qrels(path, {_id(r) for r in records}, notes)
    questions = _questions(records, positives, known, notes)
    if not questions:
        raise IngestError(f"{path}: no question is left" + (f" ({'; '.join(notes)})" if notes else ""))
    return Dataset(path.resolve().name, tuple(documents), tuple(questions), tuple(notes))


def namespaces_of(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The namespace that each passage and each question is of. Raises IngestError where a record names none."""
    found = []
    for name in ("corpus", "queries"):
        records = list(_read(_needed(folder, name)))
        if lacking := [record for record in records if not _text(record, "namespace")]:
            raise IngestError(f'{lacking[0].where}: there is no "namespace", which says what dialogue it is of')
        found.append({_id(record): _text(record, "namespace") for record in records})
    return found[0], found[1]


def sample_dataset() -> Dataset:
    """The project's own sample corpus with its questions."""
    questions = tuple(
        Question(q.id, q.question, q.answers, dict.fromkeys(q.positive_ids, 1), q.hops) for q in sample_questions()
    )
    return Dataset("sample", tuple(sample_documents()), questions)


def corpus_hash(documents: Iterable[Document]) -> str:
    """Hex digest of ids and content, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.id, document.content_hash]).encode())
    return digest.hexdigest()[:16]


def dataset_hash(dataset: Dataset) -> str:
    """Hex digest of the corpus, the questions and what counts as right."""
    digest = hashlib.sha256(corpus_hash(dataset.documents).encode())
    for q in dataset.questions:
        digest.update(json.dumps([q.id, q.text, q.answers, sorted(q.positives.items()), q.hops]).encode())
    return digest.hexdigest()[:16]


def approximate_tokens(text: str) -> int:
    """Tokens of English text by the rule of thumb of four characters each."""
    return max(1, len(text) // 4)


def load_distractors(
    folder: str | Path, tokens: int, count: Callable[[str], int] = approximate_tokens
) -> Iterator[Document]:
    """Passages to grow a memory with, at least `tokens` tokens of them as `count` counts, fewer when there are fewer.

    The folder's *.jsonl[.gz] take turns, so that any number of tokens is a mixture, and the first passages are the
    same whatever the number. Ids get the prefix "distractor-". Read as they are needed.
    Raises IngestError for a folder without files and for malformed ones, DuplicateDocumentError for repeated ids.
    """
    folder = Path(folder)
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
    if not files:
        raise IngestError(f"{folder} holds no *.jsonl or *.jsonl.gz with distractors")
    seen: set[str] = set()
    total = 0
    for record in _in_turns([_read(file) for file in files]):
        if total >= tokens:
            return
        document = _document(record)
        if document is None:
            continue
        if document.id in seen:
            raise DuplicateDocumentError(f"{record.where}: the id {document.id!r} was given before")
        seen.add(document.id)
        total += count(f"{document.title}\n{document.text}" if document.title else document.text)
        yield Document(f"distractor-{document.id}", document.text, document.title, document.metadata)


def _in_turns(sources: list[Iterator[_Record]]) -> Iterator[_Record]:
    while sources:
        for source in list(sources):
            record = next(source, None)
            if record is None:
                sources.remove(source)
            else:
                yield record


# Files


def _file(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz")
    return next((path for path in candidates if path.is_file()), None)


def _needed(folder: Path, name: str) -> Path:
    path = _file(folder, name)
    if path is None:
        raise IngestError(f"{folder}: {name}.jsonl or {name}.jsonl.gz is missing")
    return path


def _read(path: Path) -> Iterator[_Record]:
    for number, line in lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise IngestError(f"{where}: not JSON ({error})") from error
        if not isinstance(data, dict):
            raise IngestError(f"{where}: a JSON object was expected")
        yield _Record(where, data)


def _id(record: _Record) -> str:
    value = record.data.get("_id", record.data.get("id"))
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise IngestError(f'{record.where}: "_id" or "id" must be a non-empty string')
    return value


def _text(record: _Record, *names: str) -> str:
    for name in names:
        value = record.data.get(name)
        if isinstance(value, str):
            return value
        if value is not None:
            raise IngestError(f'{record.where}: "{name}" must be a string')
    return ""


# The corpus


def _documents(folder: Path, notes: list[str]) -> list[Document]:
    documents: dict[str, Document] = {}
    blank = []
    for record in _read(_needed(folder, "corpus")):
        document = _document(record)
        if document is None:
            blank.append(_id(record))
        elif document.id in documents:
            raise DuplicateDocumentError(f"{record.where}: the id {document.id!r} was given before")
        else:
            documents[document.id] = document
    if not documents:
        raise IngestError(f"{folder}: the corpus is empty")
    note(notes, blank, "passages have neither text nor title and were dropped")
    return list(documents.values())


def _document(record: _Record) -> Document | None:
    """The passage; a title alone counts as its text; None when there is nothing to read."""
    title, text = _text(record, "title"), _text(record, "text")
    if not text.strip():
        title, text = "", title
    if not text.strip():
        return None
    try:
        return Document.of({"id": _id(record), "title": title, "text": text, "metadata": record.data.get("metadata")})
    except InvalidDocumentError as error:
        raise IngestError(f"{record.where}: {error}") from error


# Questions


def _queries(folder: Path) -> list[_Record]:
    records: dict[str, _Record] = {}
    for record in _read(_needed(folder, "queries")):
        if _id(record) in records:
            raise DuplicateDocumentError(f"{record.where}: the id {_id(record)!r} was given before")
        records[_id(record)] = record
    return list(records.values())


def _questions(
    records: list[_Record],
    qrels: Mapping[str, Mapping[str, int]] | None,
    known: Mapping[str, Document],
    notes: list[str],
) -> list[Question]:
    questions, blank, unjudged, unknown, lost, themselves = [], [], [], [], [], []
    for record in records:
        name, text = _id(record), _text(record, "text", "question")
        positives = _positive_ids(record) if qrels is None else qrels.get(name, {})
        itself = name in known and _same(text, known[name])
        held = {i: grade for i, grade in positives.items() if i in known and not (itself and i == name)}
        unknown += [f"{name}: {i}" for i in positives if i not in known]
        if not text.strip():
            blank.append(name)
        elif not positives:
            unjudged.append(name)
        elif not held:
            lost.append(name)
        else:
            kind, hops = _text(record, "type"), _hops(record)
            questions.append(Question(name, text, _strings(record, "answers"), held, hops, kind, itself))
            themselves += [name] if itself else []
    note(notes, blank, "questions are empty and were dropped")
    note(notes, unknown, "pairs of question and relevant passage name passages that the corpus lacks and were dropped")
    note(notes, lost, "questions have no relevant passage in the corpus and were dropped")
    what = (
        "questions are passages themselves, under the same ids: each is left out of its own ranking, for every system"
    )
    note(notes, themselves, what)
    note(notes, unjudged, "questions have no relevant passage in this split and were left out")
    return questions


def _same(question: str, passage: Document) -> bool:
    """Whether a passage says what the question does; sets that number both from 1 on share ids by chance."""
    texts = (passage.text, f"{passage.title} {passage.text}")
    return question.split() in [text.split() for text in texts]


def _positive_ids(record: _Record) -> dict[str, int]:
    if "positive_ids" not in record.data:
        raise IngestError(f'{record.where}: there is no qrels/*.tsv[.gz], and the question has no "positive_ids"')
    return dict.fromkeys(_strings(record, "positive_ids"), 1)


def _strings(record: _Record, name: str) -> tuple[str, ...]:
    values = record.data.get(name)
    values = [] if values is None else [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise IngestError(f'{record.where}: "{name}" must be a list of strings')
    return tuple(values)


def _hops(record: _Record) -> int:
    hops = record.data.get("hops")
    if hops is None:
        return 1
    if not isinstance(hops, int) or isinstance(hops, bool) or hops < 1:
        raise IngestError(f'{record.where}: "hops" must be a positive number')
    return hops
