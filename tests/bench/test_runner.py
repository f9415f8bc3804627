"""The head-to-head run with systems that are known to be right, wrong, absent or broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from fakes import Fakes, Few, Knows, config, numbers, reasons, run, toy
from test_judge import Endpoint

from facade import TOPICS, topics
from msa_plugin.bench.judge import Judge
from msa_plugin.bench.recompute import recompute
from msa_plugin.bench.runner import Comparison
from msa_plugin.bench.scoring import exact_twin
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.errors import ConfigError, IngestError, MissingExtraError


def value(rows, system, metric, **settings):
    (row,) = [r for r in rows if (r.system, r.metric, dict(r.settings)) == (system, metric, settings)]
    return row.value


def test_retrieval_rows(tmp_path, backbone):
    fakes = Fakes()
    rows = run(backbone, fakes, config(tmp_path / "out", toy(tmp_path / "toy", hops=(1,) * 8), k=10))
    assert value(rows, "words", "RR@10") == value(rows, "words", "R@5") == 1
    assert value(rows, "wrong", "RR@10") == pytest.approx(1 / 8)
    assert value(rows, "words", "p:RR@10", versus="msa") == 1
    assert value(rows, "wrong", "p:RR@10", versus="msa") == 2**-7  # eight differences of one sign
    assert not [r for r in rows if r.metric == "R@100"]  # ten passages do not tell
    assert value(rows, "words", "index_seconds_per_1k_tokens") == 2
    assert value(rows, "words", "memory_bytes_per_token") == 8
    assert value(rows, "words", "peak_rss_bytes") > 1e6
    (row,) = [r for r in rows if (r.system, r.metric) == ("words", "seconds")]
    assert 0 < row.low <= row.value <= row.high
    assert (row.n, row.documents, row.dataset) == (8, 8, "toy")
    assert row.tokens > 100
    run_file = (tmp_path / "out/runs/toy.words.trec").read_text().splitlines()
    assert len(run_file) == 64
    assert fakes.log[:4] == ["msa prepares", "msa finds 3", "msa finds 3", "msa finds 2"]


def test_answer_rows(tmp_path, backbone):
    given = config(tmp_path / "out", toy(tmp_path / "toy"), "qa", systems=("msa", "words", "knows"))
    rows = run(backbone, Fakes(), given)
    assert value(rows, "msa", "EM", passages="adaptive") == 1
    assert value(rows, "knows", "EM", passages="adaptive") == 0
    assert value(rows, "knows", "F1", passages="adaptive") == pytest.approx(4 / 6)  # the article does not count
    assert value(rows, "knows", "contains", passages="adaptive") == 1
    assert value(rows, "knows", "output_tokens", passages="adaptive") == 3
    assert not [r for r in rows if r.system == "knows" and r.metric.startswith("sources")]
    assert value(rows, "words", "sources_precision", passages=1) == 1
    recall = value(rows, "words", "sources_recall", passages=1)
    assert recall == pytest.approx((5 + 3 * 0.5) / 8)  # three questions need two passages
    assert {json.dumps(r.settings) for r in rows if r.system == "words" and r.metric == "F1"} == {
        '{"passages": 1}',
        '{"passages": 2}',
    }
    assert [r.settings for r in rows if (r.system, r.metric) == ("words", "p:F1")] == [
        {"passages": n, "versus": "msa"} for n in (1, 2)
    ]
    (record, *_) = Results(tmp_path / "out").questions("qa", "toy", "words")
    assert record["read"] == [TOPICS[int(record["id"][1:])]]
    assert record["wall"] > 0 < record["input_tokens"]


def test_who_abstains_is_counted(tmp_path, backbone):
    class Silent(Knows):
        def answer(self, questions):
            return [replace(r, text="That is not there.", abstained=True) for r in super().answer(questions)]

    fakes = Fakes()
    fakes.kinds["silent"] = lambda name, *_: Silent(name)
    data = toy(tmp_path / "toy")
    rows = run(backbone, fakes, config(tmp_path / "out", data, "qa", systems=("knows", "silent")))
    assert value(rows, "silent", "abstained", passages="adaptive") == 1
    assert not [r for r in rows if (r.system, r.metric) == ("knows", "abstained")]
    assert recompute(tmp_path / "out") and [
        r.value for r in Results(tmp_path / "out").rows() if r.metric == "abstained"
    ] == [1]


@pytest.mark.parametrize(
    ("part", "metric", "lost"),
    [("retrieval", "exact_recall@10", {None: 3 / 8}), ("qa", "exact_read", {2: 1, 4: 3 / 4})],
)
def test_a_prefilter_is_told_beside_what_it_loses(tmp_path, backbone, part, metric, lost):
    name, data = "words+faiss:HNSW32", toy(tmp_path / "toy")
    with pytest.raises(ConfigError, match="exact search: add words"):
        config(tmp_path / "out", data, part, systems=(name,))
    fakes = Fakes()
    fakes.kinds[name] = Few
    rows = run(backbone, fakes, config(tmp_path / "out", data, part, systems=("words", name), passages=(2, 4)))
    found = {(r.system, r.settings.get("passages")): r.value for r in rows if r.metric == metric}
    assert found == {(name, passages): share for passages, share in lost.items()}
    assert ("toy", "", f"{name}: three at most") in [*reasons(rows, NOTE)]


@pytest.mark.parametrize("part", ["retrieval", "qa"])
def test_killed_in_the_middle_and_resumed_says_the_same(tmp_path, backbone, part):
    data = toy(tmp_path / "toy")
    whole = run(backbone, Fakes(), config(tmp_path / "whole", data, part))
    given = config(tmp_path / "out", data, part)
    with pytest.raises(KeyboardInterrupt):
        run(backbone, Fakes(words={2: KeyboardInterrupt()}), given)
    stored = Results(given.out)
    assert len({r["id"] for r in stored.questions(part, "toy", "words")}) == 3
    assert {r.system for r in stored.rows() if r.part == part} == {"msa"}
    file = stored.question_file(part, "toy", "words")
    file.write_bytes(file.read_bytes()[:-9])  # as if the power had gone too
    fakes = Fakes()
    resumed = run(backbone, fakes, given)
    assert numbers(resumed) == numbers(whole)
    assert not [entry for entry in fakes.log if entry.startswith("msa")]  # nothing is done twice
    assert [e for e in fakes.log if e.startswith("words")][:2] == ["words prepares", "words finds 3"]
    again = Fakes()
    before = stored.path.read_bytes()
    assert numbers(run(backbone, again, given)) == numbers(whole)
    assert again.log == []
    assert stored.path.read_bytes() == before


def test_a_system_that_cannot_run_is_told_and_the_others_go_on(tmp_path, backbone):
    fakes = Fakes(absent={0: MissingExtraError("pip install it")}, words={2: ZeroDivisionError("oh")})
    given = config(tmp_path / "out", toy(tmp_path / "toy"), systems=("absent", "words", "knows", "wrong"))
    rows = run(backbone, fakes, given)
    told = {system: reason for _, system, reason in reasons(rows, SKIPPED)}
    assert told["absent"] == "pip install it"
    assert told["words"].startswith("ZeroDivisionError: oh (after 3 questions, which are kept")
    assert told["knows"] == "it does not rank passages"
    assert {r.system for r in rows if r.metric == "AP"} == {"wrong"}
    assert fakes.log.count("words closes") == 1
    healed = run(backbone, Fakes(absent={0: MissingExtraError("pip install it")}), given)
    assert {r.system for r in healed if r.metric == "AP"} == {"words", "wrong"}
    assert {system for _, system, _ in reasons(healed, SKIPPED)} == {"absent", "knows"}


def test_rows_can_be_recomputed_from_what_was_kept(tmp_path, backbone):
    data = toy(tmp_path / "toy")
    run(backbone, Fakes(), config(tmp_path / "out", data))
    rows = run(backbone, Fakes(), config(tmp_path / "out", data, "qa"))
    everything = Results(tmp_path / "out").rows()
    results = Results(tmp_path / "out", command="another")
    spoiled = results.rows()
    results.rewrite([r for r in spoiled if r.metric != "F1"])
    results.close()
    shutil.rmtree(data)
    shutil.rmtree(tmp_path / "out" / "cache")
    assert recompute(tmp_path / "out") == sum(r.part != "cost" for r in everything)
    after = Results(tmp_path / "out").rows()
    assert numbers(after) == numbers(everything)
    assert {r.date for r in after if r.metric == "EM"} == {r.date for r in rows if r.metric == "EM"}
    path = results.question_file("retrieval", "toy", "words")
    told = [{**r, "ranking": r["ranking"][::-1]} for r in results.questions("retrieval", "toy", "words")]
    path.write_text("".join(json.dumps(r) + "\n" for r in told))
    recompute(tmp_path / "out")
    assert value(Results(tmp_path / "out").rows(), "words", "RR@10") < 0.2
    with pytest.raises(ConfigError, match="no question files"):
        recompute(tmp_path / "none")


def test_a_budget_asks_the_same_questions_of_all(tmp_path, backbone, monkeypatch):
    toy(tmp_path / "sets" / "a")
    toy(tmp_path / "sets" / "b", hops=(1,) * 8)
    given = config(tmp_path / "out", tmp_path / "sets", systems=("words", "wrong"), budget_minutes=2, seed=3)
    monkeypatch.setattr(Comparison, "_seconds", lambda self, name, pilot: len(pilot) * 10.0)
    rows = run(backbone, Fakes(), given)  # 2 sets, 10 seconds a question of each: 6 of each fit into 120 seconds
    assert {r.n for r in rows if r.metric == "AP"} == {6}
    results = Results(given.out)
    ids = [{r["id"] for r in results.questions("retrieval", "a", system)} for system in given.systems]
    assert ids[0] == ids[1]
    notes = [n for n in reasons(rows, NOTE) if n[0] == "a"]
    assert notes == [("a", "", notes[0][2])]
    assert notes[0][2].startswith(
        "6 of 8 questions were asked, drawn evenly over numbers of hops with seed 3 (--budget 2"
    )
    assert results.config()["datasets"]["a"]["asked"] == {"retrieval": 6}
    assert results.config()["datasets"]["a"]["hops"] == {"1": 5, "2": 3}
    later = run(backbone, Fakes(), given)
    assert numbers(later) == numbers(rows)


def test_fewer_questions_are_said(tmp_path, backbone):
    rows = run(backbone, Fakes(), config(tmp_path / "out", toy(tmp_path / "toy"), systems=("words",), questions=5))
    assert {r.n for r in rows if r.metric == "AP"} == {5}
    assert [n[2] for n in reasons(rows, NOTE)] == [
        "5 of 8 questions were asked, drawn evenly over numbers of hops with seed 0 (--questions 5)"
    ]


def test_another_configuration_is_refused_unless_fresh(tmp_path, backbone):
    data, out = toy(tmp_path / "toy"), tmp_path / "out"
    run(backbone, Fakes(), config(out, data, systems=("words",), k=10))
    with pytest.raises(ConfigError, match="k: 10 then, 5 now"):
        run(backbone, Fakes(), config(out, data, systems=("words",), k=5))
    rows = run(backbone, Fakes(), config(out, data, systems=("words", "wrong"), k=10))  # more systems are welcome
    assert {r.system for r in rows} == {"words", "wrong"}
    fakes = Fakes()
    rows = run(backbone, fakes, config(out, data, systems=("words",), k=5, questions=4, fresh=True))
    assert {r.n for r in rows if r.metric == "AP"} == {4}
    assert {r.system for r in rows if r.part == "retrieval"} - {""} == {"words"}
    assert fakes.log[0] == "words prepares"
    queries = data / "queries.jsonl"
    queries.write_text(queries.read_text().replace("What", "Which"))
    with pytest.raises(ConfigError, match="not the one"):
        run(backbone, Fakes(), config(out, data, systems=("words",), k=5, questions=4))


def test_a_set_that_cannot_be_read_does_not_stop_the_others(tmp_path, backbone):
    toy(tmp_path / "sets" / "good")
    toy(tmp_path / "sets" / "mute", answers=False)
    (toy(tmp_path / "sets" / "torn") / "corpus.jsonl").write_text('{"id": ')
    rows = run(backbone, Fakes(), config(tmp_path / "out", tmp_path / "sets", "qa", systems=("knows",)))
    told = {name: (system, reason) for name, system, reason in reasons(rows, SKIPPED)}
    assert told["torn"][0] == told["mute"][0] == ""
    assert told["torn"][1].startswith("torn/corpus.jsonl, line 1: not JSON")
    assert "no question has an answer" in told["mute"][1]
    assert {r.dataset for r in rows if r.metric == "F1"} == {"good"}
    with pytest.raises(IngestError, match="not JSON"):
        run(backbone, Fakes(), config(tmp_path / "other", tmp_path / "sets" / "torn"))


def test_a_judge_that_fails_midway(tmp_path, backbone):
    given = config(tmp_path / "out", toy(tmp_path / "toy"), "qa", systems=("knows",))
    with Endpoint("4", "not a number", "5", "3", (401, "no")) as server:
        rows = run(backbone, Fakes(), given, judge=Judge(server.url, retries=0))
    (row,) = [r for r in rows if r.metric == "judge"]
    assert (row.value, row.n) == (4.0, 3)
    assert [r for r in rows if r.metric == "EM"]
    told = sorted(reason for _, _, reason in reasons(rows, NOTE))
    assert len(told) == 2
    assert told[0].startswith("1 replies of knows were not judged: no score in the judge's reply")
    assert "401" in told[1]
    assert told[1].startswith("4 replies of knows")
    with Endpoint("2") as server:
        rows = run(backbone, Fakes(), given, judge=Judge(server.url, retries=0))
    assert len(server.seen) == 5  # only those without a score
    (row,) = [r for r in rows if r.metric == "judge"]
    assert (row.value, row.n) == ((12 + 10) / 8, 8)
    assert list(reasons(rows, NOTE)) == []


@pytest.mark.parametrize(
    "change", [{"systems": ()}, {"systems": ("a", "a")}, {"passages": (0,)}, {"k": 0}, {"budget_minutes": 0}]
)
def test_settings_that_make_no_sense(tmp_path, change):
    with pytest.raises(ConfigError):
        config(tmp_path, None, **change)


def test_smallest_corpora_come_first(tmp_path, backbone):
    toy(tmp_path / "sets" / "a")
    corpus = toy(tmp_path / "sets" / "b") / "corpus.jsonl"
    corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:5]))
    rows = run(backbone, Fakes(), config(tmp_path / "out", tmp_path / "sets", systems=("words",)))
    assert [r.dataset for r in rows if r.metric == "AP"] == ["b", "a"]


def others(folder, number=60):
    """Passages about nothing, one of which has the text of a passage of the toy corpus."""
    folder.mkdir()
    rows = [{"id": f"x{n}", "text": f"words said on page {n} and {n * 7919}"} for n in range(number)]
    rows[3]["text"] = next(iter(topics()))["text"]
    (folder / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_same_questions_with_other_passages_in_the_way(tmp_path, backbone):
    data, folder = toy(tmp_path / "toy"), others(tmp_path / "others")
    given = config(tmp_path / "out", data, systems=("words", "wrong"), distractors=folder, added=500, k=10)
    rows = run(backbone, Fakes(), given)
    [alone] = {r.tokens for r in run(backbone, Fakes(), config(tmp_path / "alone", data, k=10)) if r.metric == "AP"}
    assert {r.dataset for r in rows} == {"toy+500"}
    assert value(rows, "words", "R@5") == 1
    [row] = [r for r in rows if (r.system, r.metric) == ("words", "AP")]
    assert row.n == 8 and alone + 400 < row.tokens < alone + 550 and row.documents > 15
    assert [why for _, _, why in reasons(rows, NOTE) if "text was there before" in why] == [
        "1 distractors were left out: their text was there before"
    ]
    first = [line.split()[2] for line in (tmp_path / "out/runs/toy+500.wrong.trec").read_text().splitlines()]
    assert any(name.startswith("distractor-x") for name in first), "they can be found"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"added": 500}, ConfigError, "belong together"),
        ({"distractors": "others"}, ConfigError, "belong together"),
        ({"distractors": "others", "added": 10**6}, ConfigError, "fewer than 1,000,000"),
        ({"distractors": "nowhere", "added": 500}, IngestError, "nowhere"),
    ],
)
def test_distractors_that_make_no_sense(tmp_path, backbone, change, error, message):
    others(tmp_path / "others")
    if "distractors" in change:
        change = {**change, "distractors": tmp_path / change["distractors"]}
    with pytest.raises(error, match=message):
        run(backbone, Fakes(), config(tmp_path / "out", toy(tmp_path / "toy"), **change))


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("msa+faiss:IVF256,PQ48@candidates=1000,nprobe=8", "msa"),
        ("msa+coarse:128+rerank", "msa+rerank"),
        ("fusion:msa+faiss:IVF8,Flat~bm25", "fusion:msa~bm25"),
        ("msa", None),
    ],
)
def test_the_exact_twin_of_a_system_behind_an_index(name, exact):
    assert exact_twin(name) == exact
