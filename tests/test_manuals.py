"""The set of real manuals: what it lists is true of what is installed, and measuring says what happened."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "manuals"))

import collect
import measure

from facade import TOPICS, topics
from msa_plugin.data.datasets import load_dataset
from tiny import save_tiny

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS, QUESTIONS = collect.listed("documents"), collect.listed("questions")
WHEELS = [d for d in DOCUMENTS if not d["package"].startswith(collect.SYSTEM)]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manuals")
    return folder, collect.collect(folder)


def words(text):
    return re.findall(r"\w+", text.lower())


def test_what_is_listed_is_pinned_and_licensed():
    assert len({d["id"] for d in DOCUMENTS}) == len(DOCUMENTS) > 30
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for document in WHEELS:
        assert document["version"] == pins[document["package"]]
    assert all(d["licence"] and re.fullmatch("[0-9a-f]{64}", d["sha256"]) for d in DOCUMENTS)


def test_the_questions_are_of_both_kinds():
    assert len(QUESTIONS) == len({q["id"] for q in QUESTIONS}) == len({q["question"] for q in QUESTIONS}) == 40
    assert sum(not q["answers"] for q in QUESTIONS) == 6
    known = {d["id"] for d in DOCUMENTS}
    for question in QUESTIONS:
        assert bool(question["answers"]) == bool(question["positive_ids"])
        assert set(question["positive_ids"]) <= known


def test_every_question_is_answered_by_its_document(collected):
    _, found = collected
    texts = {d["id"]: d["text"] for d in found.documents}
    answered = [q for q in found.questions if q["positive_ids"]]
    if not answered:
        pytest.skip(f"no manual is installed here: {found.left_out}")
    for question in answered:
        [document] = question["positive_ids"]
        assert question["answers"][0] in texts[document], question
        asked, told = words(question["question"]), " ".join(words(texts[document]))
        copied = [" ".join(asked[at : at + 6]) for at in range(len(asked) - 5)]
        assert not [run for run in copied if run in told], question  # not in the document's own words
        assert " ".join(asked) not in told


def test_what_is_installed_is_there(collected):
    folder, found = collected
    held = {d["id"] for d in found.documents}
    assert held.isdisjoint(found.left_out) and held | set(found.left_out) == {d["id"] for d in DOCUMENTS}
    assert {p.name for p in (folder / "files").iterdir()} == held
    assert all(found.left_out.values())
    assert f"{len(held)} of {len(DOCUMENTS)} documents, {len(found.questions)} questions" in str(found)
    if held:
        dataset = load_dataset(folder)  # `msa bench qa --data` reads it
        assert {d.id for d in dataset.documents} == held
        assert len(dataset.questions) == sum(bool(q["positive_ids"]) for q in found.questions)


def test_what_is_missing_or_differs_is_left_out_with_its_questions(tmp_path, monkeypatch):
    wheel = {"package": "pytest", "version": pytest.__version__, "file": "METADATA", "sha256": "0" * 64}
    rows = [
        {"id": "other.txt", **wheel},
        {"id": "old.txt", **wheel, "version": "0.1"},
        {"id": "none.txt", **wheel, "package": "no-such-package"},
        {"id": "lost.txt", **wheel, "file": "pytest/lost.rst"},
        {"id": "far.html", **wheel, "package": "debian:far", "file": str(tmp_path / "far.html")},
    ]
    asked = [{"id": "q", "question": "?", "answers": ["a"], "positive_ids": ["other.txt"]}]
    absent = {"id": "r", "question": "??", "answers": [], "positive_ids": []}
    monkeypatch.setattr(collect, "listed", {"documents": rows, "questions": [*asked, absent]}.get)
    found = collect.collect(tmp_path / "out")
    assert found.documents == [] and found.questions == [absent]
    assert "not the one of pytest" in found.left_out["other.txt"]
    assert f"in version {pytest.__version__}, not 0.1" in found.left_out["old.txt"]
    assert "no-such-package is not installed" in found.left_out["none.txt"]
    assert "has no file pytest/lost.rst" in found.left_out["lost.txt"]
    assert "far.html of far is not installed" in found.left_out["far.html"]
    assert str(found).endswith("0 of 5 documents, 1 questions, 1 of them without an answer")


def reply(text, first="d", abstained=False, seconds=1.0):
    return {"text": text, "first": [first], "abstained": abstained, "seconds": seconds}


def test_an_answer_is_judged():
    there = {"id": "q", "question": "?", "answers": ["the 0.11.x series"], "positive_ids": ["d"]}
    absent = {"id": "r", "question": "?", "answers": [], "positive_ids": []}
    right = measure.judged(there, reply("It was The 0.11.x series."))
    assert right["right"] and right["found"] and 0.5 < right["f1"] < 1
    wrong = measure.judged(there, reply("0.12", first="e"))
    assert not wrong["right"] and not wrong["found"] and wrong["f1"] == 0
    silent = measure.judged(there, reply("the 0.11.x series", abstained=True, seconds=3.0))
    assert not silent["right"] and silent["f1"] == 0
    rightly = measure.judged(absent, reply("It is not there.", abstained=True))
    invented = measure.judged(absent, reply("Lima"))
    assert rightly["right"] and not invented["right"]
    said = measure.summed([right, wrong, silent, rightly, invented])
    assert (said["answerable"], said["right"], said["right document first"], said["wrongly abstained"]) == (3, 1, 2, 1)
    assert (said["absent"], said["rightly abstained"], said["seconds"]) == (2, 1, 1.0)
    lines = measure.table({"new": said, "old": {**said, "seconds": 4.0}}).splitlines()
    assert lines[1].split()[:4] == ["1", "of", "3", f"{said['f1']:.3f}"] and lines[1].split()[-2:] == ["0.25", "new"]


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("Use option=orjson.OPT_INDENT_2.", "OPT_INDENT_2", True),
        ("pass ShowIndex='never'", 'showindex="never"', True),
        ("It gives\n [0,  0, 0]", "[0, 0, 0]", True),
        ("14 times", "4", False),
        ("4 times", "4", True),
        ("the threads", "thread", False),
        ("TQDM_MININTERVAL=5", "TQDM_MININTERVAL", True),
        ("", "4", False),
    ],
)
def test_what_counts_as_holding_an_answer(text, answer, right):
    assert measure.holds(text, [answer]) is right


def test_fewer_questions_are_of_both_kinds_too():
    some = measure.drawn(QUESTIONS, 10, seed=0)
    assert len(some) == 10 and sum(not q["answers"] for q in some) == 2
    assert some == measure.drawn(QUESTIONS, 10, seed=0) != measure.drawn(QUESTIONS, 10, seed=1)
    assert measure.drawn(QUESTIONS, None, seed=0) == measure.drawn(QUESTIONS, 99, seed=0) == QUESTIONS


def test_a_checkout_with_settings(tmp_path):
    tried = measure.Tried.of(f"{ROOT}:reader=stock,context_tokens=512")
    assert (tried.tree, tried.settings) == (ROOT, {"reader": "stock", "context_tokens": 512})
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("{}")
    assert tried.bank(corpus) == tried.bank(corpus) != measure.Tried.of(str(ROOT)).bank(corpus)
    with pytest.raises(SystemExit, match="no src/msa_plugin"):
        measure.Tried.of(str(tmp_path))
    with pytest.raises(SystemExit, match="not name=value"):
        measure.Tried.of(f"{ROOT}:reader")


@pytest.mark.slow  # two processes import everything
def test_two_checkouts_are_asked_in_turns(tmp_path, backbone, capsys):
    save_tiny(tmp_path, backbone)
    data = tmp_path / "data"
    data.mkdir()
    corpus = [{k: d[k] for k in ("id", "title", "text")} for d in topics()]
    asked = [{"id": t, "question": f"What is a {t}?", "answers": [t], "positive_ids": [t]} for t in TOPICS[:2]]
    asked.append({"id": "absent", "question": "What is a stranger?", "answers": [], "positive_ids": []})
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    same = f"{ROOT}:model={tmp_path / 'model'},adapter={tmp_path / 'adapter'},instruction=Be brief."
    fewer = f"{same},context_tokens=40"
    given = ["--work", tmp_path / "work", "--data", data, "--out", tmp_path / "out.jsonl"]
    measure.main([*map(str, given), "--package-path", same, "--package-path", fewer])
    said = capsys.readouterr()
    assert said.out.startswith("right ")
    assert len(said.out.splitlines()) == 3 and "over last" in said.out
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    turns = [(same, "lighthouse"), (fewer, "lighthouse"), (fewer, asked[1]["id"]), (same, asked[1]["id"])]
    assert [(r["checkout"], r["id"]) for r in records][:4] == turns  # neither is always first
    assert len(records) == 6
    assert all(r["seconds"] > 0 and isinstance(r["text"], str) and len(r["first"]) == 1 for r in records)
    assert all(r["right"] == r["abstained"] for r in records if r["id"] == "absent")
    assert len(list((tmp_path / "work" / "banks").iterdir())) == 2  # kept for the next run
