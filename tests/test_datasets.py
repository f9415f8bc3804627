"""Data sets from folders: both layouts, and every way in which a file can be wrong."""

import gzip
import json

import pytest

from msa_plugin.bench.base import Found, find_others
from msa_plugin.bench.result import Scored
from msa_plugin.data.datasets import (
    Question,
    corpus_hash,
    dataset_hash,
    find_datasets,
    load_dataset,
    load_distractors,
)
from msa_plugin.errors import DuplicateDocumentError, IngestError
from msa_plugin.measuring.metrics import retrieval_scores

CORPUS = [
    {"_id": "d1", "title": "One", "text": "first", "metadata": {"year": 1}},
    {"_id": "d2", "title": "Two", "text": "second"},
]
QUERIES = [{"_id": "q1", "text": "which is first?"}, {"_id": "q2", "text": "which is second?"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td2\t1\n"


def write(path, records, compress=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = records if isinstance(records, str) else "".join(json.dumps(r) + "\n" for r in records)
    if compress:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def beir(folder, corpus=CORPUS, queries=QUERIES, compress=False, **qrels):
    write(folder / "corpus.jsonl", corpus, compress)
    write(folder / "queries.jsonl", queries, compress)
    for split, text in (qrels or {"test": QRELS}).items():
        write(folder / "qrels" / f"{split}.tsv", text, compress)
    return folder


def named(folder, corpus, queries):
    write(folder / "corpus.jsonl", corpus, compress=True)
    write(folder / "queries.jsonl", queries, compress=True)
    return folder


def test_passages_that_nobody_asks_about_are_a_data_set_where_they_may_be(tmp_path):
    write(tmp_path / "toy" / "corpus.jsonl", CORPUS, compress=True)
    data = load_dataset(tmp_path / "toy", unasked=True)
    assert len(data.documents) == 2 and data.questions == ()
    with pytest.raises(IngestError, match="queries"):
        load_dataset(tmp_path / "toy")


@pytest.mark.parametrize("compress", [False, True])
def test_the_layout_of_beir(tmp_path, compress):
    data = load_dataset(beir(tmp_path / "toy", compress=compress))
    assert data.name == "toy"
    assert [(d.id, d.title, d.text, d.metadata) for d in data.documents] == [
        ("d1", "One", "first", {"year": 1}),
        ("d2", "Two", "second", {}),
    ]
    assert data.questions == (
        Question("q1", "which is first?", positives={"d1": 2}),
        Question("q2", "which is second?", positives={"d2": 1}),
    )
    assert data.notes == ()


def test_the_layout_where_questions_name_their_positives(tmp_path):
    corpus = [{"id": 7, "title": None, "text": "seven"}, {"id": "x", "text": "", "title": "only a title"}]
    query = {"id": "a", "question": "?", "answers": ["yes", "no"], "positive_ids": ["7", "x"], "hops": 2, "type": "t"}
    data = load_dataset(named(tmp_path / "toy", corpus, [query, {**query, "id": "b", "hops": None}]))
    assert [(d.id, d.title, d.text) for d in data.documents] == [("7", "", "seven"), ("x", "", "only a title")]
    assert data.questions[0] == Question("a", "?", ("yes", "no"), {"7": 1, "x": 1}, 2, "t")
    assert data.questions[1].hops == 1


def test_test_is_taken_before_dev_before_train(tmp_path):
    splits = {name: f"q1\td1\t{grade}\n" for grade, name in ((1, "train"), (2, "dev"), (3, "test"))}
    for name in ("test", "dev", "train"):
        data = load_dataset(beir(tmp_path / name, **splits))
        assert data.questions[0].positives == {"d1": {"test": 3, "dev": 2, "train": 1}[name]}
        assert any(f"'{name}' of" in note for note in data.notes) == (len(splits) > 1)
        assert any("1 questions have no relevant passage in this split" in note for note in data.notes)
        del splits[name]


def test_a_folder_of_sets(tmp_path):
    beir(tmp_path / "b")
    beir(tmp_path / "a", compress=True)
    write(tmp_path / "other" / "readme.jsonl", [])
    assert [p.name for p in find_datasets(tmp_path)] == ["a", "b"]
    assert find_datasets(tmp_path / "a") == [tmp_path / "a"]
    with pytest.raises(IngestError, match="no data set"):
        find_datasets(tmp_path / "other")
    with pytest.raises(IngestError, match="not a folder"):
        find_datasets(tmp_path / "none")


def test_unknown_passages_and_empty_questions_are_dropped_with_a_note(tmp_path):
    queries = [*QUERIES, {"_id": "q3", "text": " "}, {"_id": "q4", "text": "lost?"}]
    qrels = QRELS + "q1\tgone\t1\nq3\td1\t1\nq4\tgone\t1\nq9\td1\t1\n"
    data = load_dataset(beir(tmp_path / "toy", queries=queries, test=qrels))
    assert [q.id for q in data.questions] == ["q1", "q2"]
    assert data.questions[0].positives == {"d1": 2}
    notes = "\n".join(data.notes)
    assert "1 questions are empty and were dropped (q3)" in notes
    assert "2 pairs" in notes
    assert "q1: gone, q4: gone" in notes
    assert "1 questions have no relevant passage in the corpus and were dropped (q4)" in notes
    assert "1 judged questions are missing in the queries and were left out (q9)" in notes


def test_a_passage_without_text_is_dropped_with_a_note(tmp_path):
    data = load_dataset(beir(tmp_path / "toy", corpus=[*CORPUS, {"_id": "d3", "text": " "}]))
    assert len(data.documents) == 2
    assert data.notes == ("1 passages have neither text nor title and were dropped (d3)",)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"corpus": [*CORPUS, CORPUS[0]]}, DuplicateDocumentError, r"corpus\.jsonl, line 3.*'d1'"),
        ({"queries": [*QUERIES, QUERIES[1]]}, DuplicateDocumentError, r"queries\.jsonl, line 3.*'q2'"),
        ({"corpus": '{"_id": "d1"'}, IngestError, r"corpus\.jsonl, line 1: not JSON"),
        ({"corpus": "\n[1]\n"}, IngestError, r"corpus\.jsonl, line 2: a JSON object"),
        ({"corpus": [{"text": "x"}]}, IngestError, 'line 1: "_id" or "id"'),
        ({"corpus": [{"_id": "d1", "text": 4}]}, IngestError, '"text" must be a string'),
        ({"corpus": [{"_id": "d1", "text": "x", "metadata": 3}]}, IngestError, "line 1.*metadata"),
        ({"corpus": []}, IngestError, "corpus is empty"),
        ({"queries": []}, IngestError, "no question is left"),
        ({"queries": [{"_id": "q1", "text": "?", "hops": 0}]}, IngestError, '"hops" must be'),
        ({"queries": [{"_id": "q1", "text": "?", "answers": [1]}]}, IngestError, '"answers" must be'),
        ({"test": "q1\td1\t1\nq1 d2 1\n"}, IngestError, r"test\.tsv, line 2: query-id"),
        ({"test": "q1 d1 1\nq1\td1\t1\n"}, IngestError, r"test\.tsv, line 1: query-id"),
        ({"test": "q1\td1\t1\nq1\td2\tnan\n"}, IngestError, r"test\.tsv, line 2: query-id"),
        ({"test": "q1\td1\t1\nq1\td2\trelevant\n"}, IngestError, r"test\.tsv, line 2: query-id"),
        ({"test": "q1\t0\td1\t1\textra\n"}, IngestError, r"test\.tsv, line 1: query-id"),
        ({"test": "q1\td1\t1.5\nq1\td1\t1\n"}, IngestError, r"line 2.*graded otherwise"),
        ({"test": "q1\td1\t1\nq1\td1\t2\n"}, IngestError, r"line 2.*graded otherwise"),
        ({"test": "q1\tnone\t1\n"}, IngestError, "no question is left.*corpus lacks"),
    ],
)
def test_malformed_files_are_named(tmp_path, change, kind, message):
    with pytest.raises(kind, match=message):
        load_dataset(beir(tmp_path / "toy", **change))


@pytest.mark.parametrize(
    "text",
    [
        QRELS.replace("score", "relevance_score"),
        "q1\td1\t2.0\nq1\td2\t0.0\nq2\td2\t1.00\n",
        "q1\t0\td1\t2\nq1\t0\td2\t-1\nq2\tQ0\td2\t1\n",
        "q1 0 d1 2\nq1 0 d2 0\n\nq2  0  d2  1\r\n",
        "query-id\titer\tcorpus-id\trelevance_score\nq1\t0\td1\t2\nq2\t0\td2\t1.0\n",
    ],
)
def test_judgements_as_other_tools_write_them(tmp_path, text):
    data = load_dataset(beir(tmp_path / "toy", test=text))
    assert [q.positives for q in data.questions] == [{"d1": 2}, {"d2": 1}] and data.notes == ()


def test_a_grade_between_two_numbers_stays_relevant(tmp_path):
    data = load_dataset(beir(tmp_path / "toy", test="q1\td1\t0.3\nq1\td2\t-0.5\nq2\td2\t1.5\n"))
    assert [q.positives for q in data.questions] == [{"d1": 1}, {"d2": 2}]
    assert data.notes == ("3 grades between two whole numbers were rounded up (q1: d1, q1: d2, q2: d2)",)


def test_a_question_that_is_a_passage_is_not_its_own_answer(tmp_path):
    """As in ArguAna: the counter-argument of a passage is wanted, and no passage is liker to it than itself."""
    queries = [{"_id": "d1", "text": "One first"}, {"_id": "d2", "text": "second\n"}, {"_id": "d3", "text": "other"}]
    corpus = [*CORPUS, {"_id": "d3", "text": "of the same id by chance"}]
    qrels = "d1\td2\t1\nd1\td1\t1\nd2\td1\t1\nd3\td3\t1\n"
    data = load_dataset(beir(tmp_path / "toy", corpus=corpus, queries=queries, test=qrels))
    assert [(q.id, q.itself, q.positives) for q in data.questions] == [
        ("d1", True, {"d2": 1}),
        ("d2", True, {"d1": 1}),
        ("d3", False, {"d3": 1}),
    ]
    [note] = data.notes
    assert note.startswith("2 questions are passages themselves") and "(d1, d2)" in note

    class Likest:
        """Ranks all passages, a question's own first."""

        name = "likest"

        def find(self, questions, k):
            own = {q.text: q.id for q in data.questions}
            ids = [sorted(("d1", "d2", "d3"), key=lambda i: (i != own[text], i)) for text in questions]
            return [Found(tuple(Scored(i, 1.0) for i in row[:k]), {}) for row in ids]

    found = [[hit.id for hit in one.ranking] for one in find_others(Likest(), data.questions, 2)]
    assert found == [["d2", "d3"], ["d1", "d3"], ["d3", "d1"]]
    positives = {q.id: q.positives for q in data.questions}
    rankings = dict(zip(positives, found, strict=True))
    assert retrieval_scores(positives, rankings, ["nDCG@10"])["nDCG@10"] == {"d1": 1.0, "d2": 1.0, "d3": 1.0}


def test_missing_files_are_named(tmp_path):
    with pytest.raises(IngestError, match="not a folder"):
        load_dataset(tmp_path / "none")
    write(tmp_path / "a" / "corpus.jsonl", CORPUS)
    with pytest.raises(IngestError, match=r"queries\.jsonl or queries\.jsonl\.gz is missing"):
        load_dataset(tmp_path / "a")
    with pytest.raises(IngestError, match=r"no qrels/\*\.tsv\[\.gz\]"):
        load_dataset(named(tmp_path / "b", CORPUS, QUERIES))


def test_damaged_bytes_are_named(tmp_path):
    folder = beir(tmp_path / "toy", compress=True)
    whole = (folder / "corpus.jsonl.gz").read_bytes()
    (folder / "corpus.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(IngestError, match=r"corpus\.jsonl\.gz.*cannot be read"):
        load_dataset(folder)
    (folder / "corpus.jsonl.gz").unlink()
    (folder / "corpus.jsonl").write_bytes(b'{"_id": "a", "text": "\xff"}\n')
    with pytest.raises(IngestError, match="line 1: not UTF-8"):
        load_dataset(folder)


def test_hashes_tell_corpora_and_judgements_apart(tmp_path):
    one = load_dataset(beir(tmp_path / "one"))
    two = load_dataset(beir(tmp_path / "two", test=QRELS.replace("2\n", "1\n", 1)))
    assert corpus_hash(one.documents) == corpus_hash(two.documents)
    assert corpus_hash(one.documents) != corpus_hash(one.documents[::-1])
    assert dataset_hash(one) != dataset_hash(two)


def test_distractors_take_turns_and_stop(tmp_path):
    write(tmp_path / "a.jsonl", [{"id": f"a{i}", "title": "", "text": "x" * 40} for i in range(5)])
    write(tmp_path / "b.jsonl", [{"id": f"b{i}", "title": "", "text": "y" * 40} for i in range(2)], compress=True)
    read = [d.id for d in load_distractors(tmp_path, 35)]
    assert read == ["distractor-a0", "distractor-b0", "distractor-a1", "distractor-b1"]
    assert [d.id for d in load_distractors(tmp_path, 3, lambda text: 1)] == read[:3]
    assert len(list(load_distractors(tmp_path, 10**6))) == 7
    assert next(load_distractors(tmp_path, 10**6)).text == "x" * 40


def test_bad_distractors(tmp_path):
    with pytest.raises(IngestError, match=r"no \*\.jsonl"):
        list(load_distractors(tmp_path, 10))
    write(tmp_path / "a.jsonl", [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}])
    with pytest.raises(DuplicateDocumentError, match=r"a\.jsonl, line 2"):
        list(load_distractors(tmp_path, 10**6))
