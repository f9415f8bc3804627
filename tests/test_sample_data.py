from collections import Counter
from importlib import resources

import pytest

from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.ingest import read_paths
from msa_plugin.types import Document

DOCUMENTS = {document.id: document for document in sample_documents()}
QUESTIONS = sample_questions()


def test_corpus():
    assert len(DOCUMENTS) == len(sample_documents()) >= 38
    assert len({d.title for d in DOCUMENTS.values()}) == len({d.text for d in DOCUMENTS.values()}) == len(DOCUMENTS)
    topics = Counter(d.metadata["topic"] for d in DOCUMENTS.values())
    assert sum(count > 1 for count in topics.values()) >= 10  # documents that are easily confused


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=lambda d: d.id)
def test_documents(document):
    assert Document.of(document) == document
    assert document.title and document.metadata.keys() == {"topic"}
    assert 60 <= len(document.text.split()) <= 160
    assert document.text == " ".join(document.text.split())


def test_questions():
    assert len(QUESTIONS) == len({q.id for q in QUESTIONS}) == len({q.question for q in QUESTIONS}) == 12
    assert sorted(q.hops for q in QUESTIONS[:5]) == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.id)
def test_question(question):
    positives = [DOCUMENTS[id_].text for id_ in question.positive_ids]
    assert question.question.endswith("?") and question.hops == len(positives) in (1, 2)
    assert question.answers and all(answer in positives[-1] for answer in question.answers)
    assert not any(answer.lower() in question.question.lower() for answer in question.answers)
    if question.hops == 1:
        assert not question.bridge
        return
    first, second = positives
    assert question.bridge in first and question.bridge in second
    assert question.bridge not in question.question
    assert not any(answer in first for answer in question.answers)
    assert not any(answer in d.text for answer in question.answers for d in DOCUMENTS.values() if d.text != second)
    assert not [id_ for id_, d in DOCUMENTS.items() if question.bridge in d.text and id_ not in question.positive_ids]


def test_the_corpus_file_can_be_ingested():
    with resources.as_file(resources.files("msa_plugin.data") / "sample_corpus.jsonl") as path:
        read = list(read_paths([path]))
    assert [(d.id, d.title, d.text) for d in read] == [(d.id, d.title, d.text) for d in DOCUMENTS.values()]
    of_the_file = {"source": "", "msa_file": ""}
    assert all({**d.metadata, **of_the_file} == {**DOCUMENTS[d.id].metadata, **of_the_file} for d in read)
